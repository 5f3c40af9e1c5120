"""Failed deliveries: retried later and elsewhere, dead-lettered after the last attempt, and replayed."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline_router.core.values.message_states import FAILED
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import Streaming, pass_time
from tests.router.core.harness.router import ALICE, Router

BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def worker_with_messages(*texts: str, key: TopicKey = ALICE, **options: Any) -> tuple[Router, Streaming]:
    """Return a worker and a router with user messages in a conversation."""
    router = Router(**options)
    worker = Streaming(router)
    for text in texts:
        router.broadcast(key, text, author={"role": "ROLE_USER"})
    router.run()
    worker.read()
    return router, worker


def attempts_of(worker: Streaming) -> dict[int, int]:
    """Return the latest attempt of each delivery that the worker received."""
    worker.sync()
    return {number: attempt for number, (_, attempt) in worker.given.items()}


def test_a_retry_delays_only_its_own_conversation() -> None:
    router, worker = worker_with_messages("one", "two")
    worker.settle(1, retry={"after_ms": 3000})
    assert not worker.results[-1].HasField("error")
    router.broadcast(BOB, "other", author={"role": "ROLE_USER"})
    router.run()
    assert attempts_of(worker) == {1: 1, 3: 1}
    pass_time(router, 2.9, worker)
    assert attempts_of(worker) == {1: 1, 3: 1}
    pass_time(router, 0.2, worker)
    assert attempts_of(worker) == {1: 2, 3: 1}
    assert router.log.unsettled[1].attempts == 1


def test_a_retry_with_replies_is_rejected() -> None:
    _, worker = worker_with_messages("one")
    worker.settle(1, "reply", retry={})
    assert worker.results[-1].error.code == "INVALID_ARGUMENT"
    assert list(worker.worker.held) == [1]


@pytest.mark.parametrize("how", ["lease", "retry", "detach"])
def test_a_delivery_is_dead_lettered_after_the_last_attempt(how: str) -> None:
    router, worker = worker_with_messages("one", "two", max_attempts=2)
    for attempt in (1, 2):
        assert attempts_of(worker)[1] == attempt
        assert not router.log.dead
        if how == "lease":
            pass_time(router, 5.0, worker)
        elif how == "retry":
            worker.settle(1, retry={"reason": "busy"})
            pass_time(router, 1.0, worker)
        else:
            worker.detach()
            worker = Streaming(router)
            router.run()
    assert router.log.dead[1].attempts == 2
    assert "after 2 attempts" in router.log.dead[1].reason
    assert list(worker.worker.held) == [2], "its conversation goes on"
    check_all(router.core, router.log, at_rest=True)


def test_attempts_survive_a_restart_except_the_one_it_interrupts() -> None:
    router, worker = worker_with_messages("one")
    worker.settle(1, retry={"after_ms": 1})
    pass_time(router, 0.1, worker)
    assert attempts_of(worker) == {1: 2}
    router.restart()
    again = Streaming(router)
    router.run()
    assert attempts_of(again) == {1: 2}


def test_a_rejected_delivery_is_a_dead_letter_at_once_and_can_be_replayed() -> None:
    router, worker = worker_with_messages("one", "two")
    worker.settle(1, reject={"reason": "bad"})
    router.run()
    assert (router.log.dead[1].reason, router.log.dead[1].attempts) == ("bad", 1)
    router.core.dispatcher.replayed(router.log.replay("t", "a", [1, 99]))
    assert 3 not in attempts_of(worker)
    worker.settle(2)
    router.run()
    assert attempts_of(worker)[3] == 1
    assert not router.log.dead


def test_a_rejection_is_confirmed_once_it_is_committed() -> None:
    router, worker = worker_with_messages("one", "two")
    worker.settle(1, reject={"reason": "bad"})
    router.carry()
    worker.sync()
    assert (worker.results, list(worker.given)) == ([], [1])
    router.run()
    assert list(router.log.dead) == [1]
    assert attempts_of(worker) == {1: 1, 2: 1}
    [result] = worker.results
    assert (result.delivery_id, result.HasField("error")) == (1, False)


def test_a_rejection_that_fails_to_commit_leaves_the_delivery_with_its_worker() -> None:
    router, worker = worker_with_messages("one", "two")
    message = worker.open(1)
    router.run()
    worker.settle(1, reject={})
    router.fail()
    assert attempts_of(worker) == {1: 1}
    [result] = worker.results
    assert (result.delivery_id, result.error.code) == (1, "LOG_UNAVAILABLE")
    assert list(worker.worker.held) == [1]
    assert message not in worker.ended
    worker.settle(1, reject={})
    router.run()
    assert list(router.log.dead) == [1]
    assert attempts_of(worker) == {1: 1, 2: 1}


def test_a_rejection_counts_although_the_worker_detaches() -> None:
    router, worker = worker_with_messages("one", "two")
    worker.settle(1, reject={})
    worker.detach()
    router.run()
    assert list(router.log.dead) == [1]
    other = Streaming(router, "w2")
    router.run()
    assert attempts_of(other) == {2: 1}


def test_a_failed_rejection_of_a_detached_worker_is_delivered_again() -> None:
    router, worker = worker_with_messages("one")
    worker.settle(1, reject={})
    worker.detach()
    router.fail()
    other = Streaming(router, "w2")
    router.run()
    assert attempts_of(other) == {1: 2}
    assert not router.log.dead


@pytest.mark.parametrize("how", ["reset", "recall"])
def test_a_conversation_does_not_wait_to_retry_an_erased_delivery(how: str) -> None:
    router = Router()
    worker = Streaming(router)
    client = router.connected(ALICE, user="x")
    router.say(client, "one", ident="one")
    router.run()
    worker.read()
    worker.settle(1, retry={"after_ms": 3_600_000})
    if how == "reset":
        router.reset(ALICE)
    else:
        router.frame(client, recall={"message_id": "e1-1"})
    router.run()
    router.say(client, "two", ident="two")
    router.run()
    assert attempts_of(worker)[2] == 1
    check_all(router.core, router.log, at_rest=True)


def test_a_draining_worker_keeps_its_deliveries_and_gets_no_more() -> None:
    router, worker = worker_with_messages("one", "two")
    worker.send(AttachRequest(drain=True))
    router.broadcast(BOB, "other", author={"role": "ROLE_USER"})
    router.run()
    worker.settle(1, "answer")
    router.run()
    worker.sync()
    assert (list(worker.given), list(worker.worker.held)) == ([1], [])
    assert router.log.head(ALICE).seq == 3
    other = Streaming(router, "w2")
    assert attempts_of(other) == {2: 1, 3: 1}


def test_open_replies_to_a_dead_letter_fail() -> None:
    router, worker = worker_with_messages("one", "two")
    first = worker.open(1, key="k1")
    router.run()
    worker.settle(1, reject={"reason": "never"})
    router.run()
    worker.sync()
    assert worker.ended[first].state == FAILED
    assert not list(router.core.open_messages.of_topic(ALICE))


def test_a_silent_worker_does_not_get_back_the_deliveries_it_lost() -> None:
    router, worker = worker_with_messages("one")
    assert attempts_of(worker) == {1: 1}
    assert worker.worker in pass_silent_lease(router)
    assert attempts_of(worker) == {1: 1}
    assert router.log.unsettled[1].attempts == 1


def pass_silent_lease(router: Router) -> list[Any]:
    """Let a lease end while all workers are silent. Return the workers that tick reports."""
    silent = [peer for peer, _ in router.tick(5.0)]
    router.run()
    return silent
