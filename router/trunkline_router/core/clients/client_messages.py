"""Frames by which clients publish: messages, edits and recalls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import EditFrame, MessageFrame, RecallFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_USER,
    Author,
    ChangeKind,
    Message,
    Part,
)

from trunkline_router.core.clients.conversations import writable_conversation
from trunkline_router.core.clients.edits import EditRequest, Edits
from trunkline_router.core.clients.message_completion import ClientMessageCompletion
from trunkline_router.core.clients.participants import Participant
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.delivery_policy import DeliveryPolicy
from trunkline_router.core.commits.effects import CommitListener, Effects
from trunkline_router.core.commits.idempotency import content_digest, idempotency_key
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.topics import TopicKey, address_of, topic_of


class ClientMessages:
    """Publishes what clients send to their conversations."""

    def __init__(
        self, edits: Edits, delivery_policy: DeliveryPolicy, outbox: ClientOutbox, effects: Effects
    ) -> None:
        self._delivery_policy = delivery_policy
        self._edits = edits
        self._outbox = outbox
        self._effects = effects

    def handle_message(self, received: ReceivedFrame[MessageFrame]) -> None:
        """Commit a message, then deliver it and answer with `ack`."""
        connection, frame, size, _ = received
        topic = writable_conversation(connection, frame)
        listener = ClientMessageCompletion(self._outbox, connection, frame.id)
        self.publish(connection, topic, frame, size, listener)

    def publish(
        self, client: Participant, topic: TopicKey, frame: MessageFrame, size: int, listener: CommitListener
    ) -> None:
        """Commit a valid message to a conversation that the client participates in, then deliver it.

        A frame with an id may be sent again, on a connection or by a call, with its conversation or without;
        the field is cleared here.
        """
        frame.ClearField("conversation")
        message = Message(
            address=address_of(topic),
            parts=frame.parts,
            reply_to=frame.reply_to,
            client_id=frame.id,
            state=COMPLETE,
        )
        author = message.author
        author.role = ROLE_USER
        author.user = client.user
        if frame.attributes:
            message.attributes.update(frame.attributes)
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(client.tenant, "client", topic, client.user, frame.id) if frame.id else None,
            digest=content_digest(frame.SerializeToString(deterministic=True)),
            listener=listener,
        )
        self._delivery_policy.decide(pending, client.tenant, frame.without_worker)
        self._effects.commit_queue.add(pending, size)

    def handle_edit(self, received: ReceivedFrame[EditFrame]) -> None:
        """Replace the parts of one of the user's messages."""
        self._submit(received, CHANGE_KIND_EDITED, received.body.parts)

    def handle_recall(self, received: ReceivedFrame[RecallFrame]) -> None:
        """Recall one of the user's messages."""
        self._submit(received, CHANGE_KIND_RECALLED)

    def _submit(
        self,
        received: ReceivedFrame[EditFrame] | ReceivedFrame[RecallFrame],
        kind: ChangeKind.ValueType,
        parts: Sequence[Part] = (),
    ) -> None:
        connection, frame, _, _ = received

        def already_recalled() -> None:
            ack = self._outbox.send(connection, 128).ack
            ack.id = frame.id
            ack.message_id = frame.message_id

        request = own_edit(
            connection,
            frame.message_id,
            kind,
            listener=ClientMessageCompletion(self._outbox, connection, frame.id),
            already_recalled=already_recalled,
        )
        request.parts = parts
        request.key = lambda topic: idempotency_key(
            connection.tenant, "change", topic, connection.user, frame.id
        )
        request.digest = content_digest(frame.SerializeToString(deterministic=True))
        self._edits.submit(request)


def own_edit(
    client: Participant,
    message_id: str,
    kind: ChangeKind.ValueType,
    listener: CommitListener,
    already_recalled: Callable[[], None],
) -> EditRequest:
    """Return the request of a client to edit or recall a message, which must be the user's own."""
    user = client.user

    def authorize(message: Message) -> None:
        if not client.participates_in(topic_of(message.address)):
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=message.id)
        if not user or message.author.role != ROLE_USER or message.author.user != user:
            raise catalogue.NOT_THE_AUTHOR.refused(message_id=message.id)

    return EditRequest(
        tenant=client.tenant.name,
        message_id=message_id,
        kind=kind,
        author=Author(role=ROLE_USER, user=user),
        authorize=authorize,
        listener=listener,
        already_recalled=already_recalled,
    )
