"""Counts of connections, users and topics with listeners."""

from __future__ import annotations

import pytest
from trunkline_router.core.directory.connection_counts import count, subscribed_within
from trunkline_router.core.values.topics import GROUP, PERSON, USER, TopicKey, address_of

from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

TENANT: TopicKey = ("t", "", "", 0, "")
AGENT: TopicKey = ("t", "a", "", 0, "")
OTHER: TopicKey = ("t", "b", "w", GROUP, "room")
FOREIGN: TopicKey = ("u", "a", "w", PERSON, "alice")
USER_X: TopicKey = ("t", "", "", USER, "x")


def crowd() -> Router:
    """Two connections of x, one of y, one without a user, and one of another tenant."""
    router = Router()
    router.connected(ALICE, user="x")
    joined = router.connected(PLATFORM, user="x", edge="e2")
    router.subscribe(joined)
    router.connected(ROOM, user="y")
    router.connected(OTHER)
    router.connected(FOREIGN, user="x")
    router.run()
    return router


@pytest.mark.parametrize(
    ("key", "connections", "users"),
    [
        (TENANT, 4, 2),
        (AGENT, 3, 2),
        (PLATFORM, 3, 2),
        (ALICE, 1, 1),
        (ROOM, 2, 2),
        (OTHER, 1, 0),
        (USER_X, 2, 1),
        (("t", "", "", USER, "z"), 0, 0),
        (("u", "", "", 0, ""), 1, 1),
        (("u", "", "", USER, "y"), 0, 0),
    ],
)
def test_connections_and_users_of_an_address_are_counted(key: TopicKey, connections: int, users: int) -> None:
    router = crowd()
    assert count(router.core.directory, address_of(key)) == (connections, users)
    topic = router.core.directory.topics.get(key)
    assert (topic.listeners if topic else 0) == connections


def test_topics_within_an_address_are_listed_in_key_order_page_by_page() -> None:
    directory = crowd().core.directory

    def keys(scope: TopicKey, after: TopicKey | None = None, limit: int = 99) -> list[TopicKey]:
        return [topic.key for topic in subscribed_within(directory, scope, after, limit)]

    everything = keys(TENANT)
    b: TopicKey = ("t", "b", "", 0, "")
    users: list[TopicKey] = [USER_X, ("t", "", "", USER, "y")]
    assert everything == [TENANT, *users, AGENT, PLATFORM, ALICE, ROOM, b, ("t", "b", "w", 0, ""), OTHER]
    assert keys(AGENT) == [AGENT, PLATFORM, ALICE, ROOM]
    assert keys(PLATFORM) == [PLATFORM, ALICE, ROOM]
    assert (keys(ROOM), keys(("t", "a", "w", GROUP, "none"))) == ([ROOM], [])
    assert {key[0] for key in keys(("u", "", "", 0, ""))} == {"u"}
    for limit in (1, 3):
        pages: list[TopicKey] = []
        while page := keys(TENANT, pages[-1] if pages else None, limit):
            assert len(page) <= limit
            pages += page
        assert pages == everything
    # The last topic of a page may have lost its listeners before the next page.
    assert keys(TENANT, ("t", "a", "w", PERSON, "zoe"), 1) == [ROOM]


def test_a_topic_whose_subscription_is_under_way_is_not_listed() -> None:
    router = Router()
    router.open(ALICE)
    assert router.core.directory.topics
    assert subscribed_within(router.core.directory, TENANT, None, 9) == []
    assert count(router.core.directory, address_of(TENANT)) == (0, 0)
