"""From the wish to say something piece by piece to an open message and its producer."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.publishing import content_digest, idempotency_key
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.log_records import AppendResult, PendingEntry, Producer
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import TopicKey

#: A key stands for one message whatever is said about it the second time.
_DIGEST = content_digest(b"open")


class OpenListener(Protocol):
    """Whoever wants to produce a message, and is told what becomes of that."""

    @property
    def blocked_by(self) -> set[Link]:
        """See `Origin`."""

    def opened(self, message: StreamedMessage) -> None:
        """The message is open, and this is its producer from here on; both are on disk."""

    def ended(self, message: Message) -> None:
        """The key is that of a message that has ended."""

    def refused(self, reason: Refused) -> None:
        """There is no such message."""


class MessageOpener:
    """Opens messages, or has them taken up where their keys were used before."""

    def __init__(self, directory: Directory, commit_queue: CommitQueue, open_messages: OpenMessages) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._open_messages = open_messages

    def open(
        self,
        topic: TopicKey,
        message: Message,
        *,
        scope: str,
        key: str,
        producer: str,
        listener: OpenListener,
        now: float,
    ) -> None:
        """Open a message in which address, author and the like are set; the origin is told.

        Raises Refused, such as TOO_MANY_OPEN_MESSAGES, and does nothing then.
        """
        tenant = self._directory.tenant(topic[0])
        self._open_messages.make_room(topic[0])
        message.state = OPEN
        message.client_id = key
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(tenant, scope, topic, "", key),
            digest=_DIGEST,
            producer=Producer(producer, 1),
            listener=OpenOperation(self._open_messages, producer, listener, now),
        )
        self._commit_queue.add(pending, message.ByteSize())


class OpenOperation:
    """An open message on its way to the log."""

    connection: ConnectedClient | None = None

    def __init__(self, table: OpenMessages, producer: str, listener: OpenListener, now: float) -> None:
        self._table = table
        self._producer = producer
        self._origin = listener
        self._now = now

    @property
    def blocked_by(self) -> set[Link]:
        """Those of whoever opens it."""
        return self._origin.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """It is on disk, now or before."""
        if pending.result is AppendResult.COMMITTED:
            self._origin.opened(self._table.opened(pending, self._now))
            return
        self._table.not_opened(pending.topic[0])
        message_id = pending.message.id
        message = self._table.get(message_id)
        if message is not None:
            message.heard_at = self._now
            done = partial(self._taken_up, message)
            self._table.take_up(message, self._producer, done, self._origin.refused)
        else:
            found = partial(self._found, message_id)
            self._table.find(pending.topic[0], message_id, found, self._origin.refused)

    def _taken_up(self, message: StreamedMessage) -> None:
        if self._table.get(message.id) is message:
            self._origin.opened(message)
        elif message.ended is not None:
            self._origin.ended(message.final())
        else:
            self._origin.refused(catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id))

    def _found(self, message_id: str, message: Message | None) -> None:
        if message is None:
            self._origin.refused(catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id))
        else:
            self._origin.ended(message)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """It is not on disk."""
        self._table.not_opened(pending.topic[0])
        self._origin.refused(reason)
