"""From something said to a message committed and delivered.

Delivery follows commit: nobody is shown a message that could still vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Protocol

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import TopicFrame
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_SYSTEM,
    ROLE_USER,
    Change,
    Delta,
    Message,
)

from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.effects import CommitListener
from trunkline_router.core.directory.backpressure import Backpressure
from trunkline_router.core.directory.connections import Link, LinkSubscription
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.log_records import AppendResult, EntryKind, PendingEntry, StoredDelivery
from trunkline_router.core.values.message_states import COMPLETE
from trunkline_router.core.values.topics import GROUP, NO_TARGET, PERSON, TopicKey, position_of, topic_of


class DeliveryListener(Protocol):
    """Dispatches deliveries to workers; implemented by the agents' dispatcher."""

    def stored(self, delivery: StoredDelivery) -> None:
        """A delivery was committed together with its message."""


class PublishPipeline:
    """Takes messages into the commit queue and, once they are committed, delivers them."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        backpressure: Backpressure,
        deliveries: DeliveryListener,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._backpressure = backpressure
        self._deliveries = deliveries
        self._new_id = new_id
        self._now_ms = now_ms

    def take(self, request: BroadcastRequest, listener: CommitListener) -> None:
        """A backend's message. Its origin is told what becomes of it, perhaps at once.

        Raises Refused where the request is not valid; the origin is not told then.
        """
        check(request)
        tenant = self._directory.tenant(request.address.tenant)
        if request.ephemeral or request.address.WhichOneof("target") == "connection":
            self._hand_on(request, listener)
            return
        topic = topic_of(request.address)
        connections = self._directory.count(topic)
        key = request.idempotency_key
        nobody = request.require_connection and not connections
        if nobody and not key:
            raise no_active_connection(request.address)
        message = self._message_of(request)
        serialized = request.SerializeToString(deterministic=True)
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=idempotency_key(tenant, "backend", topic, "", key) if key else None,
            digest=content_digest(serialized) if key else b"",
            connections=connections,
            # Somebody may have been there when it was sent first.
            repeat_only=nobody,
            deliver=is_work(message, topic),
            listener=listener,
        )
        self._commit_queue.add(pending, len(serialized))

    def _message_of(self, request: BroadcastRequest) -> Message:
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

    def _hand_on(self, request: BroadcastRequest, listener: CommitListener) -> None:
        """Deliver what is not kept."""
        address = request.address
        if request.idempotency_key:
            problem = "must be empty where nothing is kept"
            raise catalogue.INVALID_ARGUMENT.refused(field="idempotency_key", problem=problem)
        to_connection = address.WhichOneof("target") == "connection"
        # Whoever is on a lost link cannot be handed anything.
        if to_connection:
            connections = sum(1 for c in self._directory.matching(address) if not c.link.lost)
        else:
            connections = self._directory.count_reachable(topic_of(address))
        if not connections and (request.require_connection or to_connection):
            raise no_active_connection(address)
        message = self._message_of(request)
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
            for publish in self.fan_out(topic_of(address), size, listener):
                publish.frame.message.CopyFrom(message)
        listener.committed(pending)

    def committed(self, entries: list[PendingEntry]) -> None:
        """The log has dealt with these entries: deliver, and tell their origins."""
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
                listener.refused(
                    pending, catalogue.IDEMPOTENCY_MISMATCH.refused(id=pending.message.client_id)
                )

    def _deliver(self, pending: PendingEntry) -> None:
        kind = pending.kind
        known = self._directory.tenants.get(pending.topic[0])
        if known is not None and kind is EntryKind.MESSAGE:
            known.messages_committed += 1
        topic = self._directory.topics.get(pending.topic)
        if topic is not None:
            position = position_of(pending.position)
            told = topic.position
            # A listener may have come in by a read of the log that saw this commit before we did.
            if told is None or told.epoch != position.epoch or told.seq < position.seq:
                topic.position = position
                if topic.catchups:
                    body = _change_with_message(pending) if kind is EntryKind.CHANGE else pending.stored
                    for catchup in topic.catchups:
                        catchup.saw(position, kind, body)
                for publish in self.fan_out(pending.topic, len(pending.stored), pending.listener, kept=True):
                    _fill(publish.frame, pending, kind)
        if pending.delivery_id:
            self._deliveries.stored(StoredDelivery(pending.delivery_id, pending.topic, pending.stored))

    def fan_out(
        self, key: TopicKey, size: int, listener: CommitListener, *, kept: bool = False
    ) -> list[TopicFrame]:
        """One entry in the outbox of each link on which somebody hears the topic.

        What is `kept` in the log waits where a link is still told what came before it. A link on which
        only the author hears the topic gets none. The caller fills in the frame, about `size` bytes,
        before anything else is done.
        """
        topic = self._directory.topics.get(key)
        if topic is None:
            return []
        entries = []
        author = listener.connection
        alone = self._directory.heard_alone(author, topic) if author else None
        for link_topic in topic.links:
            link = link_topic.link
            if link_topic is alone or link.lost or (kept and link_topic.catchup is not None):
                continue
            publish = link.outbox.add(size).publish
            publish.topic = link_topic.number
            if author is not None and author.link is link and not (kept and author.echo):
                setattr(publish, "except", author.number)
            entries.append(publish)
            self._backpressure.added(link, listener.blocked_by)
        return entries

    def publish_delta(
        self, links: Iterable[LinkSubscription], message_id: str, delta: Delta, blocked_by: set[Link]
    ) -> None:
        """Tell the listeners of an addition, joined to the one before it where that still waits."""
        kind = delta.WhichOneof("content")
        size = delta.ByteSize()
        for link_topic in links:
            link = link_topic.link
            if link.lost or link_topic.catchup is not None:
                continue
            outbox = link.outbox
            if kind == "text" and link_topic.mark == outbox.generation and link_topic.delta is not None:
                waiting = link_topic.delta.frame.delta
                is_next = waiting.message_id == message_id and waiting.HasField("text")
                if is_next and outbox.extend_entry(size):
                    waiting.text += delta.text
                    link_topic.delta.deltas += 1
                    continue
            publish = outbox.add_delta(size + len(message_id)).publish
            publish.topic = link_topic.number
            publish.deltas = 1
            frame = publish.frame.delta
            frame.message_id = message_id
            frame.index = delta.index
            if kind == "text":
                frame.text = delta.text
            elif kind == "reasoning":
                frame.reasoning = delta.reasoning
            else:
                frame.part.CopyFrom(delta.part)
            link_topic.delta, link_topic.mark = publish, outbox.generation
            self._backpressure.added(link, blocked_by)


def _fill(frame: ServerFrame, pending: PendingEntry, kind: EntryKind) -> None:
    """What listeners are told who have had all that came before."""
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
    """For those who may not have the message; one that is recalled has nothing to be had."""
    change = Change.FromString(pending.stored)
    if change.kind != CHANGE_KIND_RECALLED:
        change.message.CopyFrom(pending.message)
    return change.SerializeToString()


def response_of(pending: PendingEntry) -> BroadcastResponse:
    """The response to a backend whose entry is committed."""
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


def idempotency_key(tenant: Tenant, kind: str, topic: TopicKey, user: str, key: str) -> bytes:
    """The name under which a key is remembered: 16 bytes of scope and key.

    It is another one for each tenant of a name: what was said to one that was deleted is no answer for the
    next.
    """
    name, agent, platform, target, ident = topic
    life = f"{name}\0{tenant.created_ms}"
    scope = f"{kind}\0{life}\0{agent}\0{platform}\0{target}\0{ident}\0{user}\0{key}"
    return blake2b(scope.encode(), digest_size=16).digest()


def content_digest(serialized: bytes) -> bytes:
    """Tells one content from another, 8 bytes."""
    return blake2b(serialized, digest_size=8).digest()


def is_work(message: Message, topic: TopicKey) -> bool:
    """What a user says to a conversation is work for its agent."""
    return message.author.role == ROLE_USER and topic[3] in (PERSON, GROUP)


def no_active_connection(address: Address) -> Refused:
    """The refusal, with the address in the words that people search for."""
    return catalogue.NO_ACTIVE_CONNECTION.refused(address=described(address))


def described(address: Address) -> str:
    """An address in words, such as `agent echo on platform web`."""
    target = address.WhichOneof("target")
    if target == "connection":
        return f"connection {address.connection} of tenant {address.tenant}"
    tenant, agent, platform, kind, ident = topic_of(address)
    if target == "user":
        return f"user {ident} of tenant {tenant}"
    words = f"agent {agent}" if agent else f"tenant {tenant}"
    if platform:
        words += f" on platform {platform}"
    if kind != NO_TARGET:
        words += f" in {'person' if kind == PERSON else 'group'} {ident}"
    return words
