"""Messages that no worker takes: delivered, expired, skipped, or beyond the bound; always committed."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.message_pb2 import (
    WITHOUT_WORKER_EXPIRE,
    WITHOUT_WORKER_KEEP,
    WITHOUT_WORKER_SKIP,
    WithoutWorker,
)
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, AgentSettings, TenantSettings
from trunkline_router.core.commits import delivery_policy
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.agents.test_dispatcher import attached, delivered_to, publish, settle
from tests.router.core.harness.router import ALICE, ROOM, Router

HOUR_S = 3600.0
BOB: TopicKey = ("t", "a", "w", PERSON, "bob")


def router_with(**settings: Any) -> Router:
    """Return a router whose tenant has these settings for its agents."""
    router = Router()
    declare(router, **settings)
    return router


def declare(router: Router, **settings: Any) -> None:
    defaults = AgentSettings(**settings)
    router.declare("t", TenantSettings(open_to=OPENNESS_ANYBODY, agent_defaults=defaults))


def ask(router: Router, text: str, choice: WithoutWorker.ValueType = 0, key: TopicKey = ALICE) -> None:  # type: ignore[assignment]
    router.broadcast(key, text, author={"role": "ROLE_USER"}, without_worker=choice)
    router.run()


def texts(worker: Any) -> list[str]:
    return [text for _, text, _ in delivered_to(worker)]


def undelivered(router: Router) -> tuple[int, int, int]:
    return router.core.delivery_policy.undelivered("t", "a")


def test_a_delivery_expires_after_an_hour_by_default() -> None:
    router = Router()
    router.say(router.connected(ALICE), "early")
    router.run()
    router.tick(HOUR_S / 2)
    ask(router, "late")
    router.tick(HOUR_S / 2 - 0.001)
    ask(router, "last", key=ROOM)
    router.tick(0.001)
    worker = attached(router)
    assert texts(worker) == ["last", "late"]
    router.run()
    assert undelivered(router) == (1, 0, 0)
    assert len(router.log.unsettled) == 2
    # The messages themselves are all there.
    assert router.log.head(ALICE).seq == 2


def test_the_time_of_the_message_decides_across_restarts() -> None:
    router = router_with(expire_after_s=60)
    ask(router, "one")
    router.tick(30)
    ask(router, "two")
    router.tick(29.9)
    router.restart()
    router.tick(0.1)
    assert texts(attached(router)) == ["two"]
    router.run()
    assert undelivered(router) == (1, 0, 0)


def test_each_message_may_choose_for_itself() -> None:
    router = router_with(without_worker=WITHOUT_WORKER_SKIP, expire_after_s=60)
    ask(router, "skipped")
    ask(router, "kept", WITHOUT_WORKER_KEEP)
    ask(router, "expires", WITHOUT_WORKER_EXPIRE)
    assert undelivered(router) == (0, 1, 0)
    router.tick(60)
    worker = attached(router)
    assert texts(worker) == ["kept"]
    settle(router, worker, 1)
    router.run()
    # Skipped only while no worker is attached.
    ask(router, "attended")
    assert texts(worker) == ["attended"]
    router.run()
    assert undelivered(router) == (1, 1, 0)


def test_clients_choose_for_their_messages_too() -> None:
    router = Router()
    client = router.connected(ALICE)
    router.frame(
        client,
        message={"parts": [{"text": {"text": "no one home?"}}], "without_worker": WITHOUT_WORKER_SKIP},
    )
    router.run()
    assert client.kinds()[-1] == "ack"
    assert not router.log.unsettled


def test_an_agent_may_keep_its_deliveries_for_ever() -> None:
    router = router_with(without_worker=WITHOUT_WORKER_KEEP)
    ask(router, "patience")
    router.tick(1000 * HOUR_S)
    router.sweep()
    router.run()
    assert texts(attached(router)) == ["patience"]


def test_expired_deliveries_are_removed_without_a_worker() -> None:
    router = router_with(expire_after_s=60)
    worker = attached(router, capacity=1)
    for key in (ALICE, BOB, ROOM):
        ask(router, "question", key=key)
    assert len(texts(worker)) == 1
    router.core.worker_detached(worker, router.now)
    router.run()
    router.tick(60)
    router.sweep(limit=1)
    router.run()
    # That of the failed attempt is a delivery that a worker has taken.
    assert [each.attempts for each in router.log.unsettled.values()] == [1]
    assert undelivered(router) == (2, 0, 0)
    queue = router.core.agent_queues.get("t", "a")
    assert queue is not None
    assert queue.waiting_count == 1
    assert texts(attached(router)) == ["question"]
    router.sweep()
    router.run()
    assert undelivered(router) == (2, 0, 0)


def test_a_delivery_that_a_worker_holds_does_not_expire() -> None:
    router = router_with(expire_after_s=60)
    worker = attached(router)
    ask(router, "question")
    assert texts(worker) == ["question"]
    for _ in range(30):
        router.core.worker_received(worker, _extending(1), router.now)
        router.tick(4)
        router.sweep()
        router.run()
    assert 1 in router.log.unsettled
    settle(router, worker, 1, "answer")
    router.run()
    assert not router.log.unsettled
    assert undelivered(router) == (0, 0, 0)


def test_a_delivery_that_a_worker_held_past_its_time_survives_a_restart() -> None:
    router = router_with(expire_after_s=60)
    worker = attached(router)
    ask(router, "long work")
    ask(router, "behind it")
    router.tick(4)
    for _ in range(15):
        router.core.worker_received(worker, _extending(1), router.now)
        router.tick(4)
    router.sweep()
    router.run()
    router.restart()
    worker = attached(router)
    assert delivered_to(worker) == [(1, "long work", 2)]
    settle(router, worker, 1)
    router.run()
    assert not router.log.unsettled


def _extending(delivery_id: int) -> Any:
    return AttachRequest(extend=[delivery_id])


def test_a_failed_commit_of_an_expiry_leaves_it_to_the_next_sweep() -> None:
    router = router_with(expire_after_s=60)
    ask(router, "question")
    router.tick(60)
    worker = attached(router)
    router.core.worker_detached(worker, router.now)
    ask(router, "another", key=BOB)
    router.tick(60)
    router.sweep()
    router.fail()
    assert len(router.log.unsettled) == 1
    router.sweep()
    # Once, although two sweeps find it before the commit.
    router.sweep()
    router.run()
    assert not router.log.unsettled
    assert undelivered(router) == (2, 0, 0)


def test_beyond_the_bound_messages_get_no_delivery_until_some_are_settled() -> None:
    router = router_with(max_waiting=3)
    client = router.connected(ALICE)
    for number in range(5):
        router.say(client, f"{number}")
        router.run()
    assert client.kinds().count("ack") == 5
    assert router.log.head(ALICE).seq == 5
    assert len(router.log.unsettled) == 3
    assert undelivered(router) == (0, 0, 2)
    worker = attached(router)
    for delivery_id in (1, 2, 3):
        settle(router, worker, delivery_id)
        router.run()
    assert texts(worker) == ["0", "1", "2"]
    router.tick(0.25)
    # The count that this one asks for shows that there is room again.
    router.say(client, "5")
    router.run()
    router.say(client, "6")
    router.run()
    assert texts(worker) == ["6"]
    assert undelivered(router) == (0, 0, 3)


def test_what_waits_since_before_a_restart_counts() -> None:
    router = router_with(max_waiting=2)
    publish(router, ALICE, "1", "2")
    router.restart()
    # The first one is what the count is made for.
    ask(router, "3")
    ask(router, "4")
    assert len(router.log.unsettled) == 3
    assert undelivered(router) == (0, 0, 1)


def test_expired_deliveries_do_not_count() -> None:
    router = router_with(max_waiting=2, expire_after_s=60)
    publish(router, ALICE, "1", "2", "3")
    router.tick(60)
    publish(router, ALICE, "4")
    publish(router, ALICE, "5")
    assert texts(attached(router)) == ["5"]


def test_a_busy_agent_is_counted_again_and_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    router = router_with(max_waiting=4)
    worker = attached(router)
    for number in range(1, 30):
        publish(router, ALICE, f"{number}")
        settle(router, worker, number)
        router.run()
        router.tick(0.05)
    assert len(texts(worker)) == 29
    assert undelivered(router) == (0, 0, 0)


def test_a_full_agent_leaves_others_alone() -> None:
    router = router_with(max_waiting=1)
    ask(router, "1")
    ask(router, "2")
    publish(router, ("t", "b", *ALICE[2:]), "3")
    publish(router, ("u", *ALICE[1:]), "4")
    assert [each.topic[:2] for each in router.log.unsettled.values()] == [("t", "a"), ("t", "b"), ("u", "a")]


def test_estimates_of_too_many_agents_are_dropped_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_policy, "MAX_AGENTS", 2)
    router = router_with(max_waiting=1)
    for name in "abcab":
        publish(router, ("t", name, *ALICE[2:]), "question")
    assert len(router.core.delivery_policy._agents) == 2


def test_a_change_of_settings_applies_to_later_messages() -> None:
    router = router_with(without_worker=WITHOUT_WORKER_SKIP)
    ask(router, "skipped")
    declare(router, without_worker=WITHOUT_WORKER_KEEP)
    ask(router, "kept")
    assert texts(attached(router)) == ["kept"]


def test_erasures_and_resets_take_expiring_deliveries_with_them() -> None:
    router = router_with(expire_after_s=60)
    ask(router, "question")
    ask(router, "other", key=BOB)
    router.tick(60)
    router.sweep()
    router.reset(ALICE)
    router.run()
    assert not router.log.unsettled
    assert texts(attached(router)) == []
