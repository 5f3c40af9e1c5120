"""Dispatching as workers see it: in order, again after a loss, settled with replies."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import (
    AGENT_MEDIA_IMAGES,
    TENANT_STATE_DELETING,
    AgentSettings,
    TenantSettings,
)
from trunkline_router.core.agents import agent_queue, dispatcher
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def attached(router: Router, *, capacity: int = 10, agent: str = "a", tenant: str = "t") -> AttachedWorker:
    """Attach a worker."""
    hello = AttachHello(
        tenant=tenant, agents=[agent], capacity=capacity, contract_minor=catalogue.CONTRACT_MINOR
    )
    worker = router.core.worker_attached(hello, router.now)
    router.core.worker_welcomed(worker)
    router.run()
    return worker


def delivered_to(worker: AttachedWorker) -> list[tuple[int, str, int]]:
    """Return id, text and attempt of each delivery that the worker receives."""
    found = []
    while (batch := worker.take()) is not None:
        found += [(d.delivery_id, d.message.parts[0].text.text, d.attempt) for d in batch.deliveries]
    return found


def results(worker: AttachedWorker) -> list[Any]:
    """Return the results of the worker's settlements."""
    found: list[Any] = []
    while (batch := worker.take()) is not None:
        found += batch.results
    return found


def settle(router: Router, worker: AttachedWorker, delivery_id: int, *replies: str) -> None:
    """Settle a delivery with these replies."""
    batch = AttachRequest()
    settlement = batch.settlements.add(delivery_id=delivery_id)
    for text in replies:
        settlement.replies.add().parts.add().text.text = text
    router.core.worker_received(worker, batch, router.now)


def publish(router: Router, key: TopicKey, *texts: str) -> None:
    """Publish texts as user messages to an agent."""
    for text in texts:
        router.broadcast(key, text, author={"role": "ROLE_USER"})
    router.run()


def test_a_delivery_waits_for_a_worker_and_is_dispatched_after_its_commit() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.say(client, "before")
    router.run()
    worker = attached(router)
    assert delivered_to(worker) == [(1, "before", 1)]
    other = router.connected(BOB)
    router.say(other, "after")
    router.write()
    assert delivered_to(worker) == []
    router.report_commit()
    assert delivered_to(worker) == [(2, "after", 1)]


def test_only_user_messages_to_conversations_are_delivered_to_workers() -> None:
    router = Router()
    worker = attached(router)
    router.broadcast(ALICE, "system")
    router.broadcast(PLATFORM, "to all", author={"role": "ROLE_USER"})
    router.broadcast(ALICE, "agent", author={"role": "ROLE_AGENT"})
    publish(router, ALICE, "user")
    assert [text for _, text, _ in delivered_to(worker)] == ["user"]


def test_one_delivery_per_conversation_is_held_and_capacity_is_respected() -> None:
    router = Router()
    worker = attached(router, capacity=2)
    publish(router, ALICE, "a1", "a2")
    publish(router, BOB, "b1")
    publish(router, ROOM, "r1")
    assert delivered_to(worker) == [(1, "a1", 1), (3, "b1", 1)]
    settle(router, worker, 1)
    router.run()
    # Capacity for one: the conversation that has waited longest is next.
    assert delivered_to(worker) == [(4, "r1", 1)]
    settle(router, worker, 3)
    router.run()
    assert delivered_to(worker) == [(2, "a2", 1)]


def test_replies_are_committed_with_the_settlement_and_then_delivered() -> None:
    router = Router()
    client = router.connected(ALICE)
    worker = attached(router)
    router.say(client, "question")
    router.run()
    delivered_to(worker)
    settle(router, worker, 1, "one", "two")
    assert client.texts == []
    assert router.log.unsettled
    router.run()
    assert client.texts == ["one", "two"]
    (result,) = results(worker)
    assert [reply.position.seq for reply in result.replies] == [2, 3]
    assert not result.HasField("error")
    assert not router.log.unsettled
    message = client.frames[-1].message
    assert (message.author.name, message.reply_to) == ("a", "e1-1")


def test_a_settlement_that_cannot_be_committed_leaves_the_delivery_with_its_worker() -> None:
    router = Router()
    client = router.connected(ALICE)
    worker = attached(router)
    publish(router, ALICE, "question")
    delivered_to(worker)
    settle(router, worker, 1, "reply")
    router.fail()
    (result,) = results(worker)
    assert result.error.code == "LOG_UNAVAILABLE"
    assert (client.texts, list(worker.held)) == (["question"], [1])
    settle(router, worker, 1, "reply")
    router.run()
    assert client.texts == ["question", "reply"]


@pytest.mark.parametrize("twice", [True, False])
def test_a_delivery_that_is_not_held_cannot_be_settled(twice: bool) -> None:
    router = Router()
    client = router.connected(ALICE)
    worker, other = attached(router), attached(router, agent="b")
    publish(router, ALICE, "question")
    if twice:
        settle(router, worker, 1, "reply")
    settle(router, worker if twice else other, 1, "again")
    router.run()
    errors = [r.error.code for r in results(worker if twice else other) if r.HasField("error")]
    assert errors == ["DELIVERY_NOT_HELD"]
    assert client.texts == (["question", "reply"] if twice else ["question"])


def test_an_invalid_settlement_is_rejected_and_the_delivery_stays_leased() -> None:
    router = Router()
    worker = attached(router)
    publish(router, ALICE, "question")
    batch = AttachRequest()
    batch.settlements.add(delivery_id=1).replies.add()
    router.core.worker_received(worker, batch, 0.0)
    (result,) = results(worker)
    assert result.error.code == "INVALID_ARGUMENT"
    assert list(worker.held) == [1]


def test_held_deliveries_are_delivered_again_in_order_when_the_stream_breaks() -> None:
    router = Router()
    one = attached(router)
    publish(router, ALICE, "a1", "a2")
    router.core.worker_detached(one, router.now)
    two = attached(router)
    assert delivered_to(two) == [(1, "a1", 2)]
    settle(router, two, 1)
    router.run()
    assert delivered_to(two) == [(2, "a2", 1)]


def test_a_failed_delivery_goes_to_another_worker_if_there_is_one() -> None:
    router = Router()
    stuck = attached(router)
    publish(router, ALICE, "a1")
    assert delivered_to(stuck) == [(1, "a1", 1)]
    fresh = attached(router)
    fresh.heard_at = 6.0
    router.tick(6)
    router.run()
    assert delivered_to(fresh) == [(1, "a1", 2)]
    assert delivered_to(stuck) == []


@pytest.mark.parametrize("committed", [True, False])
def test_a_settlement_under_way_when_the_stream_breaks_counts_if_committed(committed: bool) -> None:
    router = Router()
    one = attached(router)
    publish(router, ALICE, "a1", "a2")
    settle(router, one, 1)
    router.core.worker_detached(one, router.now)
    if committed:
        router.run()
    else:
        router.fail()
    assert delivered_to(attached(router)) == ([(2, "a2", 1)] if committed else [(1, "a1", 2)])


def test_a_settlement_that_is_being_committed_outlives_its_lease() -> None:
    router = Router()
    one, two = attached(router), attached(router, capacity=1)
    publish(router, ALICE, "a1")
    delivered_to(one)
    settle(router, one, 1, "reply")
    for worker in (one, two):
        router.core.worker_received(worker, AttachRequest(), 6.0)
    router.tick(6)
    assert delivered_to(one) == delivered_to(two) == []
    router.run()
    assert router.log.head(ALICE).seq == 2
    assert not router.log.unsettled


def test_an_expired_lease_moves_the_delivery_unless_it_was_extended() -> None:
    router = Router()
    one = attached(router, capacity=1)
    publish(router, ALICE, "a1")
    two = attached(router, capacity=5)
    router.now = 4.0
    router.core.worker_received(one, AttachRequest(extend=[1, 99]), 4.0)
    router.core.worker_received(two, AttachRequest(), 4.0)
    router.tick(4.5)
    assert delivered_to(two) == []
    router.core.worker_received(two, AttachRequest(), router.now)
    silent = router.tick(1)
    assert [peer for peer, _ in silent] == [one]
    assert delivered_to(two) == [(1, "a1", 2)]
    settle(router, one, 1, "late")
    router.run()
    assert results(one)[0].error.code == "DELIVERY_NOT_HELD"


def test_a_delivery_whose_log_is_erased_is_not_delivered_again() -> None:
    router = Router()
    worker = attached(router)
    publish(router, ALICE, "a1", "a2")
    router.reset(ALICE)
    router.core.worker_detached(worker, router.now)
    again = attached(router)
    assert delivered_to(again) == []
    publish(router, ALICE, "new")
    assert [text for _, text, _ in delivered_to(again)] == ["new"]


def test_messages_after_an_erasure_wait_only_for_the_worker_to_settle() -> None:
    router = Router()
    worker = attached(router)
    publish(router, ALICE, "old")
    assert [text for _, text, _ in delivered_to(worker)] == ["old"]
    router.reset(ALICE)
    publish(router, ALICE, "new")
    assert delivered_to(worker) == []
    settle(router, worker, 1, "late")
    router.run()
    assert [text for _, text, _ in delivered_to(worker)] == ["new"]


def test_deliveries_read_during_an_erasure_are_not_dispatched() -> None:
    router = Router()
    publish(router, ALICE, "old")
    hello = AttachHello(tenant="t", agents=["a"], capacity=9, contract_minor=catalogue.CONTRACT_MINOR)
    worker = router.core.worker_attached(hello, 0.0)
    router.core.worker_welcomed(worker)
    router.carry()
    router.read_log()
    router.reset(ALICE)
    router.return_reads()
    router.run()
    assert delivered_to(worker) == []
    publish(router, ALICE, "new")
    assert [text for _, text, _ in delivered_to(worker)] == ["new"]


def test_a_conversation_erased_while_it_waits_is_still_dispatched_one_by_one() -> None:
    router = Router()
    worker = attached(router, capacity=1)
    publish(router, BOB, "b1")
    publish(router, ALICE, "old")
    router.reset(ALICE)
    publish(router, ALICE, "new", "newer")
    attached(router, capacity=5)
    delivered_to(worker)
    (queue,) = router.core.agent_queues.of_tenant("t")
    assert [held.delivery.topic for held in queue.held.values()].count(ALICE) == 1


def test_deliveries_beyond_the_window_stay_in_the_log_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_queue, "WINDOW", 4)
    monkeypatch.setattr(dispatcher, "READ_DELIVERIES", 2)
    router = Router()
    worker = attached(router, capacity=1)
    publish(router, ALICE, *map(str, range(12)))
    (queue,) = router.core.agent_queues.of_tenant("t")
    seen = []
    for _ in range(12):
        assert queue.waiting_count <= 4
        ((delivery_id, text, _),) = delivered_to(worker)
        seen.append(text)
        settle(router, worker, delivery_id)
        router.run()
    assert seen == [str(number) for number in range(12)]
    assert not router.log.unsettled


def test_an_erased_tail_beyond_the_window_does_not_cause_endless_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_queue, "WINDOW", 4)
    monkeypatch.setattr(dispatcher, "READ_DELIVERIES", 2)
    router = Router()
    worker = attached(router, capacity=1)
    publish(router, BOB, *map(str, range(4)))
    publish(router, ALICE, *map(str, range(4)))
    router.reset(ALICE)
    for _ in range(4):
        ((delivery_id, _, _),) = delivered_to(worker)
        settle(router, worker, delivery_id)
        # Fails if the router reads without end.
        router.run()
    publish(router, ALICE, "new")
    assert [text for _, text, _ in delivered_to(worker)] == ["new"]


def test_a_failed_read_is_repeated_at_the_next_tick() -> None:
    router = Router()
    publish(router, ALICE, "a1")
    hello = AttachHello(tenant="t", agents=["a"], capacity=1, contract_minor=catalogue.CONTRACT_MINOR)
    worker = router.core.worker_attached(hello, 0.0)
    router.core.worker_welcomed(worker)
    router.carry()
    router.fail_read()
    assert not router.core.effects.reads
    router.tick(1)
    router.run()
    assert delivered_to(worker) == [(1, "a1", 1)]


def test_workers_of_two_tenants_with_equal_agents_get_their_own_deliveries() -> None:
    router = Router()
    ours, theirs = attached(router), attached(router, tenant="u")
    publish(router, ALICE, "ours")
    publish(router, ("u", *ALICE[1:]), "theirs")
    assert [[text for _, text, _ in delivered_to(worker)] for worker in (ours, theirs)] == [
        ["ours"],
        ["theirs"],
    ]
    settle(router, theirs, 1)
    assert results(theirs)[0].error.code == "DELIVERY_NOT_HELD"


@pytest.mark.parametrize("hello", [{"tenant": "v"}, {"contract_minor": 9}, {"agents": []}, {"capacity": 0}])
def test_a_worker_that_may_not_attach_is_rejected(hello: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "tenant": "t",
        "agents": ["a"],
        "capacity": 1,
        "contract_minor": catalogue.CONTRACT_MINOR,
    }
    with pytest.raises(Refused):
        Router().core.worker_attached(AttachHello(**(good | hello)), 0.0)


@pytest.mark.parametrize("committed", [True, False])
def test_a_settlement_under_way_outlives_its_deleted_tenant(committed: bool) -> None:
    router = Router()
    worker = attached(router)
    publish(router, ALICE, "question")
    delivered_to(worker)
    settle(router, worker, 1)
    router.core.worker_detached(worker, router.now)
    router.core.tenant_erased("t", [ALICE])
    if committed:
        router.run()
    else:
        router.fail()
    assert not worker.held
    assert router.core.agent_queues.of_tenant("t") == []


def test_a_deleted_tenants_queue_goes_with_its_last_worker() -> None:
    router = Router()
    worker = attached(router)
    publish(router, ALICE, "question")
    router.core.tenant_erased("t", [ALICE])
    assert router.core.agent_queues.of_tenant("t")
    router.core.worker_detached(worker, router.now)
    assert router.core.agent_queues.of_tenant("t") == []
    assert router.tick(60) == []


def test_a_late_read_of_a_deleted_tenant_leaves_the_queue_of_its_successor_alone() -> None:
    router = Router()
    hello = AttachHello(tenant="t", agents=["a"], capacity=1, contract_minor=catalogue.CONTRACT_MINOR)
    first = router.core.worker_attached(hello, router.now)
    router.core.worker_welcomed(first)
    router.carry()
    router.read_log()
    router.declare("t", state=TENANT_STATE_DELETING)
    router.core.worker_detached(first, router.now)
    router.core.tenant_erased("t", [])
    router.core.tenant_table.remove("t")
    router.declare("t")
    second = router.core.worker_attached(hello, router.now)
    router.core.worker_welcomed(second)
    router.carry()
    router.return_reads()
    router.run()
    publish(router, ALICE, "to the successor")
    assert delivered_to(second) == [(1, "to the successor", 1)]
    router.core.worker_detached(second, router.now)


def test_a_worker_holds_nothing_until_it_is_welcomed() -> None:
    router = Router()
    publish(router, ALICE, "question")
    hello = AttachHello(tenant="t", agents=["a"], capacity=1, contract_minor=catalogue.CONTRACT_MINOR)
    gone = router.core.worker_attached(hello, router.now)
    router.run()
    assert not gone.held
    router.core.worker_detached(gone, router.now)
    worker = router.core.worker_attached(hello, router.now)
    router.run()
    router.core.worker_welcomed(worker)
    router.carry()
    assert delivered_to(worker) == [(1, "question", 1)]


def test_edges_learn_the_agents_that_are_declared_and_those_that_workers_have_attached_to() -> None:
    router = Router()
    edge = router.connected(ALICE).edge
    settings = TenantSettings(
        agents={"declared": AgentSettings(accepts=AGENT_MEDIA_IMAGES, concurrency=3)}, default_agent="first"
    )
    router.declare("t", settings)
    assert list(edge.policies["t"].agents) == ["declared", "first"]
    assert edge.policies["t"].settings.agents["declared"] == AgentSettings(accepts=AGENT_MEDIA_IMAGES)
    worker = attached(router, agent="b")
    attached(router, agent="first")
    assert list(edge.policies["t"].agents) == ["declared", "first", "b"]
    sent = edge.policies["t"]
    router.core.worker_detached(worker, router.now)
    attached(router, agent="b")
    assert edge.policies["t"] is sent
