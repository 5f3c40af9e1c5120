"""What is told when something about an open message is on disk: its end, a checkpoint, a new producer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Author, Change, MessageState

from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.replies.streamed_message import Ended, StreamedMessage
from trunkline_router.core.values.log_records import Checkpoint, PendingEntry, Transaction
from trunkline_router.core.values.topics import Position, address_of, position_of

if TYPE_CHECKING:
    from trunkline_router.core.replies.open_messages import OpenMessages

Failed = Callable[[Refused], None]


class EndListener(Protocol):
    """Whoever asked for an end, and is told how the message has ended."""

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """It has ended on disk; `position` is that of the end, where that is at hand."""

    def not_ended(self, reason: Refused) -> None:
        """It could not be ended."""


class EndCommit:
    """The end of one message on its way to the log, and all who wait for it."""

    connection: ConnectedClient | None = None

    def __init__(self, table: OpenMessages, message: StreamedMessage) -> None:
        self._table = table
        self._message = message
        self.listeners: list[EndListener] = []
        #: The messages that end hold nobody up: each was held up by its deltas.
        self.blocked_by: set[Link] = set()

    def pending(self, how: Ended, author: Author | None) -> PendingEntry:
        """What is to be committed."""
        message = self._message
        change = Change(
            address=address_of(message.topic),
            message_id=message.id,
            kind=CHANGE_KIND_ENDED,
            state=how.state,
            error=how.error,
            author=author,
        )
        return PendingEntry(message.topic, message.final(), change=change, listener=self)

    def committed(self, pending: PendingEntry) -> None:
        """It is on disk."""
        position = position_of(pending.position)
        self._table.committed_end(self._message, position)
        for listener in self.listeners:
            listener.ended(pending.message.state, position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """It is not on disk."""
        self._table.failed_end(self._message)
        for listener in self.listeners:
            listener.not_ended(reason)


class CheckpointCommit:
    """A checkpoint on its way to the log."""

    __slots__ = ("_message", "_table")

    def __init__(self, table: OpenMessages, message: StreamedMessage) -> None:
        self._table = table
        self._message = message

    def done(self) -> None:
        """It is on disk."""
        self._message.saved()
        if self._table.get(self._message.id) is self._message:
            self._table.saved(self._message)

    def failed(self, reason: Refused) -> None:
        """It is not on disk; what it held goes into the next one."""
        self._message.not_saved()


class TakeoverCommit:
    """A change of producer on its way to the log."""

    def __init__(self, message: StreamedMessage, name: str, done: Callable[[], None], failed: Failed) -> None:
        self._message = message
        self._producer = message.taken_up(name)
        self._done = done
        self._failed = failed

    @property
    def write(self) -> AtomicWrite:
        """What is to be committed."""
        message = self._message
        checkpoint = Checkpoint(message.topic, message.seq, self._producer)
        return AtomicWrite(Transaction(checkpoints=[checkpoint]), self)

    def done(self) -> None:
        """It is on disk: those before can write no more."""
        self._message.producer = self._producer
        self._done()

    def failed(self, reason: Refused) -> None:
        """It is not: the one before is still the producer."""
        self._message.not_taken_up(self._producer)
        self._failed(reason)
