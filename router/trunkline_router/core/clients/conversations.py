"""Conversations that client frames name, checked against the connection's subscriptions."""

from __future__ import annotations

from typing import Any

from trunkline.v1 import catalogue

from trunkline_router.core.directory.connections import ConnectedClient, Topic
from trunkline_router.core.values.topics import NO_TARGET, PERSON, TopicKey


def conversation_of(connection: ConnectedClient, frame: Any) -> TopicKey:
    """Return the conversation that a frame names, by default the one connected to."""
    key = connection.home
    if frame.HasField("conversation"):
        key = (*key[:3], frame.conversation.kind, frame.conversation.id)
    elif key[3] == NO_TARGET:
        problem = "must be set, as the connection was made to no conversation"
        raise catalogue.INVALID_ARGUMENT.refused(field="conversation", problem=problem)
    return key


def subscribed_topic(connection: ConnectedClient, frame: Any) -> Topic:
    """Return the topic of the frame's conversation. Raises Refused NOT_SUBSCRIBED."""
    key = conversation_of(connection, frame)
    topic = connection.subscription_to(key)
    if topic is None:
        raise catalogue.NOT_SUBSCRIBED.refused(conversation=name_of(key))
    return topic


def writable_conversation(connection: ConnectedClient, frame: Any) -> TopicKey:
    """Return the frame's conversation if the client takes part in it, subscribed or not.

    Raises Refused NOT_SUBSCRIBED.
    """
    key = conversation_of(connection, frame)
    if not connection.participates_in(key):
        raise catalogue.NOT_SUBSCRIBED.refused(conversation=name_of(key))
    return key


def name_of(key: TopicKey) -> str:
    """Return a conversation as error messages name it, such as `group:room`."""
    return f"{'person' if key[3] == PERSON else 'group'}:{key[4]}"
