"""Work for agents, seen from workers: handed out in order, again when lost, settled with its replies."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import AttachHello, AttachRequest
from trunkline.v1.catalogue import Refused
from trunkline_router.core.agents import agent_queue, dispatcher
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.router import ALICE, PLATFORM, ROOM, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def attached(router: Router, *, capacity: int = 10, agent: str = "a", tenant: str = "t") -> AttachedWorker:
    """A worker."""
    hello = AttachHello(
        tenant=tenant, agents=[agent], capacity=capacity, contract_minor=catalogue.CONTRACT_MINOR
    )
    worker = router.core.worker_attached(hello, router.now)
    router.settle()
    return worker


def given_to(worker: AttachedWorker) -> list[tuple[int, str, int]]:
    """What a worker is given: id, text, attempt."""
    found = []
    while (batch := worker.take()) is not None:
        found += [(d.delivery_id, d.message.parts[0].text.text, d.attempt) for d in batch.deliveries]
    return found


def results(worker: AttachedWorker) -> list[Any]:
    """What a worker is told of its settlements."""
    found: list[Any] = []
    while (batch := worker.take()) is not None:
        found += batch.results
    return found


def settle(router: Router, worker: AttachedWorker, delivery_id: int, *replies: str) -> None:
    """A worker settles a delivery."""
    batch = AttachRequest()
    settlement = batch.settlements.add(delivery_id=delivery_id)
    for text in replies:
        settlement.replies.add().parts.add().text.text = text
    router.core.worker_received(worker, batch, router.now)


def asked(router: Router, key: TopicKey, *texts: str) -> None:
    """Users say something to an agent."""
    for text in texts:
        router.broadcast(key, text, author={"role": "ROLE_USER"})
    router.settle()


def test_work_waits_for_a_worker_and_is_handed_out_once_committed() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.say(client, "before")
    router.settle()
    worker = attached(router)
    assert given_to(worker) == [(1, "before", 1)]
    other = router.connected(BOB)
    router.say(other, "after")
    router.write()
    assert given_to(worker) == []
    router.tell()
    assert given_to(worker) == [(2, "after", 1)]


def test_only_what_a_user_says_to_a_conversation_is_work() -> None:
    router = Router()
    worker = attached(router)
    router.broadcast(ALICE, "system")
    router.broadcast(PLATFORM, "to all", author={"role": "ROLE_USER"})
    router.broadcast(ALICE, "agent", author={"role": "ROLE_AGENT"})
    asked(router, ALICE, "user")
    assert [text for _, text, _ in given_to(worker)] == ["user"]


def test_one_delivery_of_a_conversation_is_held_at_a_time_and_capacity_is_kept() -> None:
    router = Router()
    worker = attached(router, capacity=2)
    asked(router, ALICE, "a1", "a2")
    asked(router, BOB, "b1")
    asked(router, ROOM, "r1")
    assert given_to(worker) == [(1, "a1", 1), (3, "b1", 1)]
    settle(router, worker, 1)
    router.settle()
    # Room for one: of those that wait, who has waited longest.
    assert given_to(worker) == [(4, "r1", 1)]
    settle(router, worker, 3)
    router.settle()
    assert given_to(worker) == [(2, "a2", 1)]


def test_replies_are_committed_with_the_settlement_and_delivered_in_answer() -> None:
    router = Router()
    client = router.connected(ALICE)
    worker = attached(router)
    router.say(client, "question")
    router.settle()
    given_to(worker)
    settle(router, worker, 1, "one", "two")
    assert client.texts == []
    assert router.log.unsettled
    router.settle()
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
    asked(router, ALICE, "question")
    given_to(worker)
    settle(router, worker, 1, "reply")
    router.fail()
    (result,) = results(worker)
    assert result.error.code == "LOG_UNAVAILABLE"
    assert (client.texts, list(worker.held)) == (["question"], [1])
    settle(router, worker, 1, "reply")
    router.settle()
    assert client.texts == ["question", "reply"]


@pytest.mark.parametrize("twice", [True, False])
def test_a_delivery_that_is_not_held_cannot_be_settled(twice: bool) -> None:
    router = Router()
    client = router.connected(ALICE)
    worker, other = attached(router), attached(router, agent="b")
    asked(router, ALICE, "question")
    if twice:
        settle(router, worker, 1, "reply")
    settle(router, worker if twice else other, 1, "again")
    router.settle()
    errors = [r.error.code for r in results(worker if twice else other) if r.HasField("error")]
    assert errors == ["DELIVERY_NOT_HELD"]
    assert client.texts == (["question", "reply"] if twice else ["question"])


def test_a_settlement_that_is_not_valid_is_refused_and_the_delivery_stays() -> None:
    router = Router()
    worker = attached(router)
    asked(router, ALICE, "question")
    batch = AttachRequest()
    batch.settlements.add(delivery_id=1).replies.add()
    router.core.worker_received(worker, batch, 0.0)
    (result,) = results(worker)
    assert result.error.code == "INVALID_ARGUMENT"
    assert list(worker.held) == [1]


def test_what_a_worker_held_is_delivered_again_in_order_when_its_stream_breaks() -> None:
    router = Router()
    one = attached(router)
    asked(router, ALICE, "a1", "a2")
    router.core.worker_detached(one)
    two = attached(router)
    assert given_to(two) == [(1, "a1", 2)]
    settle(router, two, 1)
    router.settle()
    assert given_to(two) == [(2, "a2", 1)]


def test_what_a_worker_failed_goes_to_another_one_if_there_is_one() -> None:
    router = Router()
    stuck = attached(router)
    asked(router, ALICE, "a1")
    assert given_to(stuck) == [(1, "a1", 1)]
    fresh = attached(router)
    fresh.heard_at = 6.0
    router.tick(6)
    router.settle()
    assert given_to(fresh) == [(1, "a1", 2)]
    assert given_to(stuck) == []


@pytest.mark.parametrize("committed", [True, False])
def test_a_settlement_on_its_way_when_the_stream_breaks_counts_if_it_is_committed(committed: bool) -> None:
    router = Router()
    one = attached(router)
    asked(router, ALICE, "a1", "a2")
    settle(router, one, 1)
    router.core.worker_detached(one)
    if committed:
        router.settle()
    else:
        router.fail()
    assert given_to(attached(router)) == ([(2, "a2", 1)] if committed else [(1, "a1", 2)])


def test_a_settlement_that_is_being_committed_outlives_its_lease() -> None:
    router = Router()
    one, two = attached(router), attached(router, capacity=1)
    asked(router, ALICE, "a1")
    given_to(one)
    settle(router, one, 1, "reply")
    for worker in (one, two):
        router.core.worker_received(worker, AttachRequest(), 6.0)
    router.tick(6)
    assert given_to(one) == given_to(two) == []
    router.settle()
    assert router.log.head(ALICE).seq == 2
    assert not router.log.unsettled


def test_a_lease_that_ends_gives_the_delivery_to_another_and_extending_prevents_it() -> None:
    router = Router()
    one = attached(router, capacity=1)
    asked(router, ALICE, "a1")
    two = attached(router, capacity=5)
    router.now = 4.0
    router.core.worker_received(one, AttachRequest(extend=[1, 99]), 4.0)
    router.core.worker_received(two, AttachRequest(), 4.0)
    router.tick(4.5)
    assert given_to(two) == []
    router.core.worker_received(two, AttachRequest(), router.now)
    silent = router.tick(1)
    assert [peer for peer, _ in silent] == [one]
    assert given_to(two) == [(1, "a1", 2)]
    settle(router, one, 1, "late")
    router.settle()
    assert results(one)[0].error.code == "DELIVERY_NOT_HELD"


def test_a_delivery_whose_log_is_erased_is_not_delivered_again() -> None:
    router = Router()
    worker = attached(router)
    asked(router, ALICE, "a1", "a2")
    router.reset(ALICE)
    router.core.worker_detached(worker)
    again = attached(router)
    assert given_to(again) == []
    asked(router, ALICE, "new")
    assert [text for _, text, _ in given_to(again)] == ["new"]


def test_what_is_said_after_a_log_was_erased_waits_only_for_the_worker_to_be_done() -> None:
    router = Router()
    worker = attached(router)
    asked(router, ALICE, "old")
    assert [text for _, text, _ in given_to(worker)] == ["old"]
    router.reset(ALICE)
    asked(router, ALICE, "new")
    assert given_to(worker) == []
    settle(router, worker, 1, "late")
    router.settle()
    assert [text for _, text, _ in given_to(worker)] == ["new"]


def test_a_log_that_is_erased_while_its_deliveries_are_read_is_not_worked_on() -> None:
    router = Router()
    asked(router, ALICE, "old")
    hello = AttachHello(tenant="t", agents=["a"], capacity=9, contract_minor=catalogue.CONTRACT_MINOR)
    worker = router.core.worker_attached(hello, 0.0)
    router.carry()
    router.look()
    router.reset(ALICE)
    router.show()
    router.settle()
    assert given_to(worker) == []
    asked(router, ALICE, "new")
    assert [text for _, text, _ in given_to(worker)] == ["new"]


def test_a_conversation_that_begins_anew_while_it_waits_is_still_handed_out_one_by_one() -> None:
    router = Router()
    worker = attached(router, capacity=1)
    asked(router, BOB, "b1")
    asked(router, ALICE, "old")
    router.reset(ALICE)
    asked(router, ALICE, "new", "newer")
    attached(router, capacity=5)
    given_to(worker)
    (queue,) = router.core.agent_queues.of_tenant("t")
    assert [held.delivery.topic for held in queue.held.values()].count(ALICE) == 1


def test_more_than_the_window_stays_in_the_log_and_is_read_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_queue, "WINDOW", 4)
    monkeypatch.setattr(dispatcher, "READ_DELIVERIES", 2)
    router = Router()
    worker = attached(router, capacity=1)
    asked(router, ALICE, *map(str, range(12)))
    (queue,) = router.core.agent_queues.of_tenant("t")
    seen = []
    for _ in range(12):
        assert queue.waiting_count <= 4
        ((delivery_id, text, _),) = given_to(worker)
        seen.append(text)
        settle(router, worker, delivery_id)
        router.settle()
    assert seen == [str(number) for number in range(12)]
    assert not router.log.unsettled


def test_an_erased_tail_beyond_the_window_does_not_make_it_read_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_queue, "WINDOW", 4)
    monkeypatch.setattr(dispatcher, "READ_DELIVERIES", 2)
    router = Router()
    worker = attached(router, capacity=1)
    asked(router, BOB, *map(str, range(4)))
    asked(router, ALICE, *map(str, range(4)))
    router.reset(ALICE)
    for _ in range(4):
        ((delivery_id, _, _),) = given_to(worker)
        settle(router, worker, delivery_id)
        # Raises where it never comes to rest.
        router.settle()
    asked(router, ALICE, "new")
    assert [text for _, text, _ in given_to(worker)] == ["new"]


def test_a_read_that_fails_is_asked_for_again_at_the_next_tick() -> None:
    router = Router()
    asked(router, ALICE, "a1")
    hello = AttachHello(tenant="t", agents=["a"], capacity=1, contract_minor=catalogue.CONTRACT_MINOR)
    worker = router.core.worker_attached(hello, 0.0)
    router.carry()
    router.fail_read()
    assert not router.core.effects.reads
    router.tick(1)
    router.settle()
    assert given_to(worker) == [(1, "a1", 1)]


def test_workers_of_equal_agents_in_two_tenants_get_their_own_work() -> None:
    router = Router()
    ours, theirs = attached(router), attached(router, tenant="u")
    asked(router, ALICE, "ours")
    asked(router, ("u", *ALICE[1:]), "theirs")
    assert [[text for _, text, _ in given_to(worker)] for worker in (ours, theirs)] == [["ours"], ["theirs"]]
    settle(router, theirs, 1)
    assert results(theirs)[0].error.code == "DELIVERY_NOT_HELD"


@pytest.mark.parametrize("hello", [{"tenant": "v"}, {"contract_minor": 9}, {"agents": []}, {"capacity": 0}])
def test_a_worker_that_may_not_attach_is_refused(hello: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "tenant": "t",
        "agents": ["a"],
        "capacity": 1,
        "contract_minor": catalogue.CONTRACT_MINOR,
    }
    with pytest.raises(Refused):
        Router().core.worker_attached(AttachHello(**(good | hello)), 0.0)
