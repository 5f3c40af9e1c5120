"""Deliveries that fail: again later, elsewhere, so many times, then given up, and replayed."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import EXPIRED, Streaming
from tests.router.core.harness.router import ALICE, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def asked(*texts: str, key: TopicKey = ALICE, **options: Any) -> tuple[Router, Streaming]:
    """A worker, and what users said to a conversation."""
    router = Router(**options)
    worker = Streaming(router)
    for text in texts:
        router.broadcast(key, text, author={"role": "ROLE_USER"})
    router.settle()
    worker.read()
    return router, worker


def given(worker: Streaming) -> dict[int, int]:
    """What a worker was given: the last attempt by delivery."""
    worker.sync()
    return {number: attempt for number, (_, attempt) in worker.given.items()}


def later(router: Router, seconds: float, *workers: Streaming) -> None:
    """Time passes, and these workers are heard."""
    for worker in workers:
        worker.worker.heard_at = router.now + seconds
    router.tick(seconds)
    router.settle()


def test_what_is_to_be_retried_waits_and_holds_up_its_conversation_only() -> None:
    router, worker = asked("one", "two")
    worker.settle(1, retry={"after_ms": 3000})
    assert not worker.results[-1].HasField("error")
    router.broadcast(BOB, "other", author={"role": "ROLE_USER"})
    router.settle()
    assert given(worker) == {1: 1, 3: 1}
    later(router, 2.9, worker)
    assert given(worker) == {1: 1, 3: 1}
    later(router, 0.2, worker)
    assert given(worker) == {1: 2, 3: 1}
    assert router.log.unsettled[1].attempts == 1


def test_a_settlement_that_asks_for_another_attempt_has_no_replies() -> None:
    _, worker = asked("one")
    worker.settle(1, "reply", retry={})
    assert worker.results[-1].error.code == "INVALID_ARGUMENT"
    assert list(worker.worker.held) == [1]


@pytest.mark.parametrize("how", ["lease", "retry", "detach"])
def test_after_so_many_attempts_it_is_a_dead_letter(how: str) -> None:
    router, worker = asked("one", "two", max_attempts=2)
    for attempt in (1, 2):
        assert given(worker)[1] == attempt
        assert not router.log.dead
        if how == "lease":
            later(router, 5.0, worker)
        elif how == "retry":
            worker.settle(1, retry={"reason": "busy"})
            later(router, 0.1, worker)
        else:
            worker.detach()
            worker = Streaming(router)
            router.settle()
    assert router.log.dead[1].attempts == 2
    assert "after 2 attempts" in router.log.dead[1].reason
    assert list(worker.worker.held) == [2], "its conversation goes on"
    check_all(router.core, router.log, at_rest=True)


def test_attempts_outlive_the_router_but_for_the_one_that_it_cut_short() -> None:
    router, worker = asked("one")
    worker.settle(1, retry={})
    later(router, 0.1, worker)
    assert given(worker) == {1: 2}
    router.restart()
    again = Streaming(router)
    router.settle()
    assert given(again) == {1: 2}


def test_what_is_rejected_is_a_dead_letter_at_once_and_replayed_as_if_just_said() -> None:
    router, worker = asked("one", "two")
    worker.settle(1, reject={"reason": "bad"})
    router.settle()
    assert (router.log.dead[1].reason, router.log.dead[1].attempts) == ("bad", 1)
    router.core.dispatcher.replayed(router.log.replay("t", "a", [1, 99]))
    assert 3 not in given(worker)
    worker.settle(2)
    router.settle()
    assert given(worker)[3] == 1
    assert not router.log.dead


def test_a_worker_is_told_that_a_delivery_is_given_up_when_it_is_so_on_disk() -> None:
    router, worker = asked("one", "two")
    worker.settle(1, reject={"reason": "bad"})
    router.carry()
    worker.sync()
    assert (worker.results, list(worker.given)) == ([], [1])
    router.settle()
    assert list(router.log.dead) == [1]
    assert given(worker) == {1: 1, 2: 1}
    [result] = worker.results
    assert (result.delivery_id, result.HasField("error")) == (1, False)


def test_what_cannot_be_given_up_on_disk_is_still_the_workers() -> None:
    router, worker = asked("one", "two")
    message = worker.open(1)
    router.settle()
    worker.settle(1, reject={})
    router.fail()
    assert given(worker) == {1: 1}
    [result] = worker.results
    assert (result.delivery_id, result.error.code) == (1, "LOG_UNAVAILABLE")
    assert list(worker.worker.held) == [1]
    assert message not in worker.ended
    worker.settle(1, reject={})
    router.settle()
    assert list(router.log.dead) == [1]
    assert given(worker) == {1: 1, 2: 1}


def test_what_was_rejected_stays_so_though_the_worker_hangs_up() -> None:
    router, worker = asked("one", "two")
    worker.settle(1, reject={})
    worker.detach()
    router.settle()
    assert list(router.log.dead) == [1]
    other = Streaming(router, "w2")
    router.settle()
    assert given(other) == {2: 1}


def test_what_cannot_be_given_up_by_one_that_hung_up_is_delivered_again() -> None:
    router, worker = asked("one")
    worker.settle(1, reject={})
    worker.detach()
    router.fail()
    other = Streaming(router, "w2")
    router.settle()
    assert given(other) == {1: 2}
    assert not router.log.dead


@pytest.mark.parametrize("how", ["reset", "recall"])
def test_a_conversation_does_not_wait_for_an_attempt_at_what_is_gone(how: str) -> None:
    router = Router()
    worker = Streaming(router)
    client = router.connected(ALICE, user="x")
    router.say(client, "one", ident="one")
    router.settle()
    worker.read()
    worker.settle(1, retry={"after_ms": 3_600_000})
    if how == "reset":
        router.reset(ALICE)
    else:
        router.frame(client, recall={"message_id": "e1-1"})
    router.settle()
    router.say(client, "two", ident="two")
    router.settle()
    assert given(worker)[2] == 1
    check_all(router.core, router.log, at_rest=True)


def test_a_worker_that_drains_is_given_nothing_more_and_keeps_what_it_has() -> None:
    router, worker = asked("one", "two")
    worker.send(AttachRequest(drain=True))
    router.broadcast(BOB, "other", author={"role": "ROLE_USER"})
    router.settle()
    worker.settle(1, "answer")
    router.settle()
    worker.sync()
    assert (list(worker.given), list(worker.worker.held)) == ([1], [])
    assert router.log.head(ALICE).seq == 3
    other = Streaming(router, "w2")
    assert given(other) == {2: 1, 3: 1}


def test_open_replies_to_what_is_given_up_expire() -> None:
    router, worker = asked("one", "two")
    first = worker.open(1, key="k1")
    router.settle()
    worker.settle(1, reject={"reason": "never"})
    router.settle()
    worker.sync()
    assert worker.ended[first].state == EXPIRED
    assert not list(router.core.open_messages.of_topic(ALICE))


def test_a_worker_that_has_gone_silent_is_not_given_back_what_it_lost() -> None:
    router, worker = asked("one")
    assert given(worker) == {1: 1}
    assert worker.worker in later_silent(router)
    assert given(worker) == {1: 1}
    assert router.log.unsettled[1].attempts == 1


def later_silent(router: Router) -> list[Any]:
    """A lease ends in which nobody is heard; returns those that are given up."""
    silent = [peer for peer, _ in router.tick(5.0)]
    router.settle()
    return silent
