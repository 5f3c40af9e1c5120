"""Commits about open messages: ends, checkpoints and takeovers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Author, Change, MessageState

from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.values.log_records import Checkpoint, PendingEntry, Transaction
from trunkline_router.core.values.topics import Position, address_of, position_of


class EndListener(Protocol):
    """Requested the end of a message and receives how it ended."""

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """The end is committed; `position` is its place in the log, if known."""

    def not_ended(self, reason: Refused) -> None:
        """The end was not committed; the message is still open."""


class EndCommit:
    """Listener of the end of one message, and all who requested it."""

    connection: ConnectedClient | None = None

    def __init__(
        self,
        message: StreamedMessage,
        committed: Callable[[StreamedMessage, Position], None],
        failed: Callable[[StreamedMessage], None],
    ) -> None:
        self._message = message
        self._committed = committed
        self._failed = failed
        self.listeners: list[EndListener] = []
        #: Never used to block anybody: the producer was blocked by its deltas already.
        self.blocked_by: set[Link] = set()

    def entry(self, end: MessageEnd, author: Author | None) -> PendingEntry:
        """Return the entry to commit."""
        message = self._message
        change = Change(
            address=address_of(message.topic),
            message_id=message.id,
            kind=CHANGE_KIND_ENDED,
            state=end.state,
            error=end.error,
            author=author,
        )
        return PendingEntry(message.topic, message.final(), change=change, listener=self)

    def committed(self, pending: PendingEntry) -> None:
        """The end is committed."""
        position = position_of(pending.position)
        self._committed(self._message, position)
        for listener in self.listeners:
            listener.ended(pending.message.state, position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The end was not committed."""
        self._failed(self._message)
        for listener in self.listeners:
            listener.not_ended(reason)


class CheckpointCommit:
    """Listener of a checkpoint."""

    __slots__ = ("_committed", "_message")

    def __init__(self, message: StreamedMessage, committed: Callable[[StreamedMessage], None]) -> None:
        self._message = message
        self._committed = committed

    @property
    def write(self) -> AtomicWrite:
        """The write to commit."""
        return AtomicWrite(Transaction(checkpoints=[self._message.checkpoint()]), self)

    def done(self) -> None:
        """The checkpoint is committed."""
        self._message.checkpoint_committed()
        self._committed(self._message)

    def failed(self, reason: Refused) -> None:
        """The checkpoint was not committed."""
        self._message.checkpoint_failed()


class TakeoverCommit:
    """Listener of a takeover: a message changes its producer."""

    __slots__ = ("_done", "_failed", "_message", "_producer")

    def __init__(
        self,
        message: StreamedMessage,
        name: str,
        done: Callable[[], None],
        failed: Callable[[Refused], None],
    ) -> None:
        self._message = message
        self._producer = message.begin_takeover(name)
        self._done = done
        self._failed = failed

    @property
    def write(self) -> AtomicWrite:
        """The write to commit."""
        message = self._message
        checkpoint = Checkpoint(message.topic, message.seq, self._producer)
        return AtomicWrite(Transaction(checkpoints=[checkpoint]), self)

    def done(self) -> None:
        """The takeover is committed."""
        self._message.takeover_committed(self._producer)
        self._done()

    def failed(self, reason: Refused) -> None:
        """The takeover was not committed."""
        self._message.takeover_failed(self._producer)
        self._failed(reason)
