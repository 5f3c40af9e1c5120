"""Frames by which clients publish: messages, signals, edits and recalls."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import EditFrame, MessageFrame, RecallFrame, SignalFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_USER,
    Author,
    ChangeKind,
    Message,
)

from trunkline_router.core.clients.conversations import writable_conversation
from trunkline_router.core.clients.edits import EditRequest, Edits
from trunkline_router.core.clients.message_completion import ClientMessageCompletion
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.effects import Effects
from trunkline_router.core.commits.fan_out import FanOut
from trunkline_router.core.commits.idempotency import content_digest, idempotency_key
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.topics import address_of, topic_of


class ClientMessages:
    """Publishes what clients send to their conversations."""

    def __init__(self, fan_out: FanOut, edits: Edits, outbox: ClientOutbox, effects: Effects) -> None:
        self._fan_out = fan_out
        self._edits = edits
        self._outbox = outbox
        self._effects = effects

    def handle_message(self, received: ReceivedFrame[MessageFrame]) -> None:
        """Commit a message, then deliver it and answer with `ack`."""
        connection, frame, size = received
        topic = writable_conversation(connection, frame)
        message = Message(
            address=address_of(topic),
            parts=frame.parts,
            reply_to=frame.reply_to,
            client_id=frame.id,
            state=COMPLETE,
        )
        author = message.author
        author.role = ROLE_USER
        author.user = connection.user
        if frame.attributes:
            message.attributes.update(frame.attributes)
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(connection.tenant, "client", topic, connection.user, frame.id),
            digest=content_digest(frame.SerializeToString(deterministic=True)),
            deliver=True,
            listener=ClientMessageCompletion(self._outbox, connection, frame.id),
        )
        self._effects.commit_queue.add(pending, size)

    def handle_signal(self, received: ReceivedFrame[SignalFrame]) -> None:
        """Publish a signal to the other subscribers; it is not logged."""
        connection, frame, size = received
        topic = writable_conversation(connection, frame)
        sender = ClientMessageCompletion(self._outbox, connection, "")
        for publish in self._fan_out.add(topic, size, sender):
            signal = publish.frame.signal
            signal.CopyFrom(frame)
            signal.user = connection.user
            signal.conversation.CopyFrom(address_of(topic).conversation)

    def handle_edit(self, received: ReceivedFrame[EditFrame]) -> None:
        """Replace the parts of one of the user's messages."""
        request = self._edit_request(received, CHANGE_KIND_EDITED)
        request.parts = received.body.parts
        self._edits.submit(request)

    def handle_recall(self, received: ReceivedFrame[RecallFrame]) -> None:
        """Recall one of the user's messages."""
        self._edits.submit(self._edit_request(received, CHANGE_KIND_RECALLED))

    def _edit_request(
        self,
        received: ReceivedFrame[EditFrame] | ReceivedFrame[RecallFrame],
        kind: ChangeKind.ValueType,
    ) -> EditRequest:
        connection, frame, _ = received
        user = connection.user

        def authorize(message: Message) -> None:
            if not connection.participates_in(topic_of(message.address)):
                raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id)
            if not user or message.author.role != ROLE_USER or message.author.user != user:
                raise catalogue.NOT_THE_AUTHOR.refused(message_id=message.id)

        def already_recalled() -> None:
            ack = self._outbox.send(connection, 128).ack
            ack.id = frame.id
            ack.message_id = frame.message_id

        return EditRequest(
            tenant=connection.home[0],
            message_id=frame.message_id,
            kind=kind,
            author=Author(role=ROLE_USER, user=user),
            authorize=authorize,
            listener=ClientMessageCompletion(self._outbox, connection, frame.id),
            already_recalled=already_recalled,
            key=lambda topic: idempotency_key(connection.tenant, "change", topic, user, frame.id),
            digest=content_digest(frame.SerializeToString(deterministic=True)),
        )
