"""Publishing: from a backend's request, or any pending entry, to a committed and delivered message.

Delivery follows commit, so no listener gets a message that could still vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_SYSTEM,
    ROLE_USER,
    Change,
    Message,
)

from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.delivery_policy import DeliveryPolicy
from trunkline_router.core.commits.effects import CommitListener
from trunkline_router.core.commits.fan_out import FanOut
from trunkline_router.core.commits.idempotency import content_digest, idempotency_key
from trunkline_router.core.directory.backpressure import LinkBackpressure
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import AppendResult, EntryKind, PendingEntry
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import GROUP, PERSON, TopicKey, describe, position_of, topic_of


class DeliveryListener(Protocol):
    """Dispatches deliveries to workers; implemented by the agents' queues."""

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed together with its message."""


class PublishPipeline:
    """Adds messages to the commit queue and delivers entries once they are committed."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        fan_out: FanOut,
        backpressure: LinkBackpressure,
        delivery_policy: DeliveryPolicy,
        deliveries: DeliveryListener,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._fan_out = fan_out
        self._backpressure = backpressure
        self._delivery_policy = delivery_policy
        self._deliveries = deliveries
        self._new_id = new_id
        self._now_ms = now_ms

    def publish(self, request: BroadcastRequest, listener: CommitListener) -> None:
        """Take a backend's message. The listener is notified of the result, at once if nothing is logged.

        Raises Refused if the request is rejected; the listener is not notified then.
        """
        # Serialized once, for its size and for the digest.
        serialized = request.SerializeToString(deterministic=True)
        check(request, size=len(serialized))
        address = request.address
        tenant = self._directory.active_tenant(address.tenant)
        if request.ephemeral or address.WhichOneof("target") == "connection":
            self._publish_ephemeral(request, listener)
            return
        topic = topic_of(address)
        connections = self._directory.count_listeners(topic)
        key = request.idempotency_key
        lacks_connection = request.require_connection and not connections
        if lacks_connection and not key:
            raise no_active_connection(address)
        message = _message_of(request)
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(tenant, "backend", topic, "", key) if key else None,
            digest=content_digest(serialized) if key else b"",
            connections=connections,
            # A connection may have been active when the request was sent first.
            repeat_only=lacks_connection,
            listener=listener,
        )
        if needs_delivery(message, topic):
            self._delivery_policy.decide(pending, tenant, request.without_worker)
        self._commit_queue.add(pending, len(serialized))

    def _publish_ephemeral(self, request: BroadcastRequest, listener: CommitListener) -> None:
        """Deliver a message that is not logged."""
        address = request.address
        if request.idempotency_key:
            problem = "must be empty if the message is not logged"
            raise catalogue.INVALID_ARGUMENT.refused(field="idempotency_key", problem=problem)
        to_connection = address.WhichOneof("target") == "connection"
        # Nothing reaches connections on a lost link.
        if to_connection:
            connections = sum(1 for c in self._directory.matching(address) if not c.link.is_lost)
        else:
            connections = self._directory.count_reachable(topic_of(address))
        if not connections and (request.require_connection or to_connection):
            raise no_active_connection(address)
        message = _message_of(request)
        message.id = f"e-{self._new_id()}"
        message.created_at.FromMilliseconds(self._now_ms())
        size = message.ByteSize()
        pending = PendingEntry(
            topic=("", "", "", 0, ""), message=message, connections=connections, listener=listener
        )
        pending.result = AppendResult.COMMITTED
        if to_connection:
            for connection in self._directory.matching(address):
                send = connection.link.outbox.add(size).send
                send.connection = connection.number
                send.frame.message.CopyFrom(message)
                self._backpressure.added(connection.link, listener.blocked_by)
        else:
            for publish in self._fan_out.add(topic_of(address), size, listener):
                publish.frame.message.CopyFrom(message)
        listener.committed(pending)

    def committed(self, entries: list[PendingEntry]) -> None:
        """The log has processed these entries: notify their listeners and deliver what is new."""
        for pending in entries:
            listener: CommitListener = pending.listener
            if pending.result is AppendResult.COMMITTED:
                listener.committed(pending)
                self._deliver(pending)
            elif pending.result is AppendResult.DUPLICATE:
                listener.committed(pending)
            elif pending.result is AppendResult.NO_REPEAT:
                listener.refused(pending, no_active_connection(pending.message.address))
            else:
                mismatch = catalogue.IDEMPOTENCY_MISMATCH.refused(id=pending.message.client_id)
                listener.refused(pending, mismatch)

    def _deliver(self, pending: PendingEntry) -> None:
        kind = pending.kind
        tenant = self._directory.tenants.get(pending.topic[0])
        if tenant is not None and kind is EntryKind.MESSAGE:
            tenant.messages_committed += 1
        topic = self._directory.topics.get(pending.topic)
        if topic is not None:
            position = position_of(pending.position)
            delivered = topic.position
            # A subscription may have read the log after this commit and before the core learnt of it.
            if delivered is None or delivered.epoch != position.epoch or delivered.seq < position.seq:
                topic.position = position
                if topic.catchups:
                    body = _change_with_message(pending) if kind is EntryKind.CHANGE else pending.stored
                    for catchup in topic.catchups:
                        catchup.add_live(position, kind, body)
                size = len(pending.stored)
                for publish in self._fan_out.add(pending.topic, size, pending.listener, logged=True):
                    _fill(publish.frame, pending, kind)
        if pending.delivery_id:
            delivery = StoredDelivery(
                pending.delivery_id, pending.topic, pending.stored, expires_ms=pending.expires_ms
            )
            self._deliveries.stored(delivery)


def _message_of(request: BroadcastRequest) -> Message:
    message = Message(
        address=request.address,
        parts=request.parts,
        author=request.author,
        reply_to=request.reply_to,
        client_id=request.idempotency_key,
        state=COMPLETE,
    )
    if not message.author.role:
        message.author.role = ROLE_SYSTEM
    if request.attributes:
        message.attributes.update(request.attributes)
    return message


def _fill(frame: ServerFrame, pending: PendingEntry, kind: EntryKind) -> None:
    """Fill in the frame for listeners that have all earlier entries."""
    if kind is EntryKind.MESSAGE:
        frame.message.CopyFrom(pending.message)
    elif kind is EntryKind.READ:
        assert pending.read is not None
        frame.read.CopyFrom(pending.read)
    else:
        assert pending.change is not None
        frame.change.CopyFrom(pending.change)
        if pending.change.kind == CHANGE_KIND_EDITED:
            frame.change.message.CopyFrom(pending.message)


def _change_with_message(pending: PendingEntry) -> bytes:
    """Return the change with its message, for listeners that may lack it; without it if recalled."""
    assert pending.change is not None
    change = Change()
    change.CopyFrom(pending.change)
    if change.kind != CHANGE_KIND_RECALLED:
        change.message.CopyFrom(pending.message)
    return change.SerializeToString()


def response_of(pending: PendingEntry) -> BroadcastResponse:
    """Return the response to a backend whose entry is committed."""
    response = BroadcastResponse()
    fill_response(response, pending)
    return response


def fill_response(response: BroadcastResponse, pending: PendingEntry) -> None:
    """Fill in the response to a backend whose entry is committed."""
    message = pending.message
    response.message_id = message.id
    response.connections = pending.connections
    if message.HasField("position"):
        response.position.CopyFrom(message.position)


def needs_delivery(message: Message, topic: TopicKey) -> bool:
    """Return whether the agent's workers get the message: a user's message in a conversation."""
    return message.author.role == ROLE_USER and topic[3] in (PERSON, GROUP)


def no_active_connection(address: Address) -> Refused:
    """Return the refusal, whose text names the address as operators search for it."""
    return catalogue.NO_ACTIVE_CONNECTION.refused(address=describe(address))
