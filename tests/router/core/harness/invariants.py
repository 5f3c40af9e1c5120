"""Invariants of the core's tables."""

from __future__ import annotations

from collections import Counter

from trunkline_router.core.agents.agent_queue import AgentQueue
from trunkline_router.core.directory.connections import Link, Topic
from trunkline_router.core.router import RouterCore

from tests.support.memory_log import MemoryLog


def check_all(core: RouterCore, log: MemoryLog, *, at_rest: bool) -> None:
    """Check all invariants. `at_rest`: nothing is being read or committed."""
    check_tables(core, at_rest=at_rest)
    check_agents(core, at_rest=at_rest)
    check_open_messages(core, log, at_rest=at_rest)


def check_tables(core: RouterCore, *, at_rest: bool) -> None:
    """Check links, connections and topics. `at_rest`: no read, and so no subscription, is under way."""
    links = set(core.directory.links.values())
    heard: Counter[object] = Counter()
    heard_on: Counter[object] = Counter()
    for link in links:
        for number, connection in link.connections.items():
            assert connection.link is link
            assert connection.number == number
            assert len(set(connection.topics)) == len(connection.topics), "a topic is subscribed twice"
            for topic in connection.topics:
                assert core.directory.topics.get(topic.key) is topic, "a topic with listeners is dropped"
                heard[topic] += 1
                heard_on[topic, link] += 1
    for key, topic in core.directory.topics.items():
        assert topic.key == key
        check_topic(topic, links, heard, heard_on)
        if at_rest:
            assert topic.reference_count == heard[topic], f"{topic} has users that are gone"
            assert not topic.catchups
    for tenant in core.directory.tenants.values():
        for connection in core.directory.connections_of(tenant).values():
            assert connection.home[0] == tenant.name
            assert connection.link.connections.get(connection.number) is connection
    for link in links:
        if link.is_lost:
            assert link.outbox.waiting_bytes == 0, "entries for a lost link are kept"


def check_topic(topic: Topic, links: set[Link], heard: Counter[object], heard_on: Counter[object]) -> None:
    """Check a topic's counts against the connections that hear it."""
    assert topic.reference_count > 0
    assert topic.reference_count >= heard[topic] == topic.listeners
    assert len({link_topic.link for link_topic in topic.links}) == len(topic.links)
    for link_topic in topic.links:
        assert link_topic.link in links, "a topic has listeners on a removed link"
        assert link_topic.listeners == heard_on[topic, link_topic.link] > 0


def check_agents(core: RouterCore, *, at_rest: bool) -> None:
    """Check the tables of deliveries and workers."""
    for queue in core.agent_queues:
        check_queue(queue)
    for worker in core.dispatcher.workers:
        assert len(worker.held) <= worker.capacity
        for number, held in worker.held.items():
            assert core.agent_queues.holding(held).held[number] is held
            assert held.worker is worker
        replies = core.streamed_replies.replies_of(worker)
        for number, message in replies.current.items():
            assert number not in replies.ended
            if message is not None:
                assert (message.owner, message.reply_number) == (worker, number)
                assert core.open_messages.get(message.id) is message
            else:
                assert not at_rest, "a reply is never opened"


def check_queue(queue: AgentQueue) -> None:
    """Check a queue's counts; a lane is busy while one of its deliveries is leased or delayed."""
    lanes = queue.lanes
    waiting = list(lanes)
    ids = [delivery.delivery_id for delivery in waiting]
    assert len(set(ids)) == len(ids), "a delivery waits twice"
    assert queue.waiting_count == len(waiting)
    assert queue.waiting_bytes == sum(len(delivery.message) for delivery in waiting)
    held = Counter(leased.lane for leased in queue.held.values())
    assert lanes.busy == held + Counter(lanes.delayed.keys())
    assert not set(ids) & queue.held.keys()
    assert set(queue.failed.ids) <= {*ids, *queue.held}
    assert len(lanes._delays) >= len(lanes.delayed)
    for lane, found in lanes.waiting.items():
        assert found
        assert [d.delivery_id for d in found] == sorted(d.delivery_id for d in found)
        assert all(lanes.lane_of(delivery) == lane for delivery in found)
        excess = lanes._excess.get(lane[:5], ())
        assert lane in lanes.busy or lane in lanes.ready or lane in excess
    leased = Counter(lane[:5] for lane in held.elements()) if lanes.concurrency > 1 else Counter()
    assert lanes._leased == leased
    listed = [lane for found in lanes._waiting_of.values() for lane in found]
    assert lanes.concurrency == 1 or sorted(listed) == sorted(lanes.waiting)
    for topic in lanes._excess:
        is_ready = any(lane[:5] == topic for lane in lanes.ready)
        assert is_ready or leased[topic] >= lanes.concurrency, "lanes wait for ever"


def check_open_messages(core: RouterCore, log: MemoryLog, *, at_rest: bool) -> None:
    """Check the tables of open messages and pending edits; at rest they match the log."""
    table = core.open_messages
    by_topic = [(key, seq, m) for key, found in table._by_topic.items() for seq, m in found.items()]
    assert {message.id for _, _, message in by_topic} == table._by_id.keys()
    for key, seq, message in by_topic:
        assert (message.topic, message.seq) == (key, seq)
        assert table.get(message.id) is message
        assert message.durable_index <= message.next_index
    assert all(table._by_topic.values())
    assert set(table._ends) <= set(table._by_id.values())
    assert {m for m in table._by_id.values() if m.ended is not None} == set(table._ends)
    tenants = Counter(message.topic[0] for _, _, message in by_topic)
    for tenant in core.directory.tenants:
        assert table.count(tenant) >= tenants[tenant]
    if not at_rest:
        return
    assert not table._ends
    assert all(table.count(tenant) == tenants[tenant] for tenant in core.directory.tenants)
    assert table._by_id.keys() == log.open.keys()
    for number, message in table._by_id.items():
        assert message.producer == log.producer(number)
    assert not core.edits._requests
    assert not core.agent_queues.withdrawing
    assert (core.effects.commit_queue.entries, core.effects.commit_queue.bytes) == (0, 0)
    assert not core.effects.commit_queue._under_way
