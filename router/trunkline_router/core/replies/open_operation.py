"""Opening of streamed messages, by which a message gets its producer."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.commits.idempotency import content_digest, idempotency_key
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.replies.open_messages import OpenMessages
from trunkline_router.core.replies.streamed_message import StreamedMessage
from trunkline_router.core.values.log_records import AppendResult, PendingEntry, Producer
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import TopicKey

#: Shared by all: a key stands for one message whatever the second request contains.
_DIGEST = content_digest(b"open")


class OpenListener(Protocol):
    """Requested to produce a message and receives the outcome."""

    @property
    def blocked_by(self) -> set[Link]:
        """See `CommitListener`."""

    def opened(self, message: StreamedMessage) -> None:
        """The message is open and the listener its producer; both are committed."""

    def ended(self, message: Message) -> None:
        """The key belongs to a message that has ended."""

    def refused(self, reason: Refused) -> None:
        """The message was not opened."""


class MessageOpener:
    """Opens messages, or takes over those whose keys were used before."""

    def __init__(self, directory: Directory, open_messages: OpenMessages, effects: Effects) -> None:
        self._directory = directory
        self._open_messages = open_messages
        self._effects = effects

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
        """Open a message whose address, author and attributes are set; the listener gets the outcome.

        Raises Refused, such as TOO_MANY_OPEN_MESSAGES, and does nothing then.
        """
        tenant = self._directory.active_tenant(topic[0])
        self._open_messages.reserve(topic[0])
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
        self._effects.commit_queue.add(pending, message.ByteSize())


class OpenOperation:
    """One open message on its way to the log, or its takeover if the key was used before."""

    connection: ConnectedClient | None = None

    def __init__(
        self, open_messages: OpenMessages, producer: str, listener: OpenListener, now: float
    ) -> None:
        self._open_messages = open_messages
        self._producer = producer
        self._listener = listener
        self._now = now

    @property
    def blocked_by(self) -> set[Link]:
        """Those of the listener."""
        return self._listener.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The message is committed, now or before."""
        if pending.result is AppendResult.COMMITTED:
            opened = self._open_messages.opened(pending, self._now)
            self._listener.opened(opened)
            if opened.is_cancelled:
                self._open_messages.cancel(opened, None, None)
            return
        self._open_messages.release(pending.topic[0])
        message_id = pending.message.id
        message = self._open_messages.get(message_id)
        if message is not None:
            message.heard_at = self._now
            done = partial(self._taken_over, message)
            self._open_messages.take_over(message, self._producer, done, self._listener.refused)
        else:
            done_reading = partial(self._read, message_id)
            self._open_messages.read_message(
                pending.topic[0], message_id, done_reading, self._listener.refused
            )

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The message was not committed."""
        self._open_messages.release(pending.topic[0])
        self._listener.refused(reason)

    def _taken_over(self, message: StreamedMessage) -> None:
        if self._open_messages.get(message.id) is message:
            self._listener.opened(message)
        elif message.ended is not None:
            self._listener.ended(message.final())
        else:
            self._listener.refused(catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id))

    def _read(self, message_id: str, message: Message | None) -> None:
        if message is None:
            self._listener.refused(catalogue.MESSAGE_NOT_FOUND.refused(message_id=message_id))
        else:
            self._listener.ended(message)
