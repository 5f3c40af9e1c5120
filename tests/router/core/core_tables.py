"""What must be true of the core's tables at any time."""

from __future__ import annotations

from collections import Counter

from router.core.directory import Link, Topic
from router.core.router import RouterCore


def check_tables(core: RouterCore, *, at_rest: bool) -> None:
    """Raises AssertionError. `at_rest`: nothing is being read, so nobody is on its way into a topic."""
    links = set(core.directory.links.values())
    heard: Counter[object] = Counter()
    heard_on: Counter[object] = Counter()
    for link in links:
        for number, connection in link.connections.items():
            assert connection.link is link
            assert connection.number == number
            assert len(set(connection.topics)) == len(connection.topics), "a topic is joined twice"
            for topic in connection.topics:
                assert core.directory.topics.get(topic.key) is topic, "a topic that is heard is forgotten"
                heard[topic] += 1
                heard_on[topic, link] += 1
    for key, topic in core.directory.topics.items():
        assert topic.key == key
        check_topic(topic, links, heard, heard_on)
        if at_rest:
            assert topic.users == heard[topic], f"{topic} has users that are gone"
            assert not topic.catchups
    for tenant in core.directory.tenants.values():
        for connection in tenant.connections.values():
            assert connection.home[0] == tenant.name
            assert connection.link.connections.get(connection.number) is connection
    for link in links:
        if link.lost:
            assert link.outbox.waiting_bytes == 0, "what waits for a lost link is kept"


def check_topic(topic: Topic, links: set[Link], heard: Counter[object], heard_on: Counter[object]) -> None:
    """Its counts are those of the connections that hear it."""
    assert topic.users > 0
    assert topic.users >= heard[topic] == topic.listeners
    assert len({link_topic.link for link_topic in topic.links}) == len(topic.links)
    for link_topic in topic.links:
        assert link_topic.link in links, "a topic is heard on a link that is forgotten"
        assert link_topic.listeners == heard_on[topic, link_topic.link] > 0
