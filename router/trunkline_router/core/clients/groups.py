"""Subscriptions of connections to groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import SubscribeFrame, UnsubscribeFrame

from trunkline_router.core.clients.conversations import name_of, subscribed_topic
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.clients.signals import Signals
from trunkline_router.core.clients.subscribing import Subscriptions
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.directory.presence import Presence
from trunkline_router.core.values.topics import GROUP, Position, TopicKey, position_of


class Groups:
    """Lets connections join and leave groups beside the conversation that they connected to."""

    def __init__(
        self,
        directory: Directory,
        presence: Presence,
        outbox: ClientOutbox,
        signals: Signals,
        subscriptions: Subscriptions,
        peek: Callable[[TopicKey], Position | None],
    ) -> None:
        self._directory = directory
        self._presence = presence
        self._outbox = outbox
        self._signals = signals
        self._subscriptions = subscriptions
        self._peek = peek

    def handle_subscribe(self, received: ReceivedFrame[SubscribeFrame]) -> None:
        """Join a group, from a position on if one is given."""
        connection, frame, _, _ = received
        key: TopicKey = (*connection.home[:3], frame.conversation.kind, frame.conversation.id)
        if frame.conversation.kind != GROUP:
            raise catalogue.CONVERSATION_FORBIDDEN.refused(conversation=name_of(key))
        if connection.permissions is not None and not connection.permissions.may_join(key[4]):
            raise catalogue.FORBIDDEN.refused(problem=f"the token does not allow {name_of(key)}")
        limit = connection.tenant.limits.conversations
        if (
            not connection.subscription_to(key)
            and len(connection.groups) + connection.pending_groups >= limit
        ):
            raise catalogue.TOO_MANY_TOPICS.refused(limit=limit)
        topic = self._directory.acquire_topic(key, self._peek(key))
        wanted = {key: position_of(frame.position)} if frame.HasField("position") else {}
        answered = partial(self._subscribed, connection, frame.id, topic)
        failed = partial(self._not_subscribed, connection, frame.id)
        connection.pending_groups += 1
        self._subscriptions.subscribe(connection, [topic], wanted, answered, failed)

    def _subscribed(
        self,
        connection: ConnectedClient,
        frame_id: str,
        topic: Topic,
        recovered: bool,
        starts: list[Position],
    ) -> None:
        connection.pending_groups -= 1
        if not connection.subscription_to(topic.key):
            self._presence.joined(connection, topic.key)
        subscribed = self._outbox.send(connection, 128).subscribed
        subscribed.id = frame_id
        subscribed.address.CopyFrom(topic.address)
        subscribed.position.CopyFrom(starts[0].to_proto())
        subscribed.recovered = recovered

    def _not_subscribed(self, connection: ConnectedClient, frame_id: str) -> None:
        connection.pending_groups -= 1
        self._outbox.refuse(connection, frame_id, catalogue.LOG_UNAVAILABLE.refused())

    def handle_unsubscribe(self, received: ReceivedFrame[UnsubscribeFrame]) -> None:
        """Leave a group."""
        connection, frame, _, _ = received
        topic = subscribed_topic(connection, frame)
        if topic.key == connection.home:
            problem = "the conversation that the connection was made to is left by disconnecting"
            raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
        self.leave(connection, topic, frame.id)

    def leave(self, connection: ConnectedClient, topic: Topic, frame_id: str) -> None:
        """Take the connection out of a group and send it `unsubscribed`."""
        subscription = topic.subscription_on(connection.link)
        leave = connection.link.outbox.add().leave
        leave.connection = connection.number
        if subscription is not None:
            leave.topics.append(subscription.number)
        unsubscribed = self._outbox.send(connection, 128).unsubscribed
        unsubscribed.id = frame_id
        unsubscribed.address.CopyFrom(topic.address)
        self._presence.left(connection, topic.key)
        connection.topics.remove(topic)
        self._directory.unsubscribe(connection, topic)
        self._signals.left(connection, topic.key)
        self._directory.release_topic(topic)
