"""Counts of connections, users and topics that are heard."""

from __future__ import annotations

import heapq

from trunkline.v1.address_pb2 import Address

from trunkline_router.core.directory.connections import Topic
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.values.topics import NO_TARGET, TopicKey


def count(directory: Directory, address: Address) -> tuple[int, int]:
    """Return the number of connections that a valid address matches, and of the users behind them."""
    connections = 0
    users = set()
    for connection in directory.matching(address):
        connections += 1
        users.add(connection.user)
    users.discard("")
    return connections, len(users)


def subscribed_within(
    directory: Directory, scope: TopicKey, after: TopicKey | None, limit: int
) -> list[Topic]:
    """Return up to `limit` topics with listeners that lie within `scope`, in key order after `after`."""
    found = (
        topic
        for key, topic in directory.topics.items()
        if _is_within(key, scope) and (after is None or key > after) and topic.listeners
    )
    return heapq.nsmallest(limit, found, key=lambda topic: topic.key)


def _is_within(key: TopicKey, scope: TopicKey) -> bool:
    tenant, agent, platform, kind, _ = scope
    if kind != NO_TARGET:
        return key == scope
    return key[0] == tenant and agent in ("", key[1]) and platform in ("", key[2])
