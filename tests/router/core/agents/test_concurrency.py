"""Several deliveries of a conversation at a time: each author's in order, and no more than allowed."""

from __future__ import annotations

import pytest
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, AgentSettings, TenantSettings

from tests.router.core.harness.client import Client
from tests.router.core.harness.invariants import check_all
from tests.router.core.harness.producers import Streaming, pass_time
from tests.router.core.harness.router import ROOM, Router


def settings(concurrency: int) -> TenantSettings:
    agents = {"a": AgentSettings(concurrency=concurrency)}
    return TenantSettings(open_to=OPENNESS_LOOPBACK, agents=agents)


def group(concurrency: int, *users: str, capacity: int = 10) -> tuple[Router, Streaming, dict[str, Client]]:
    """Return a group of users, and a worker of an agent with this concurrency."""
    router = Router()
    router.declare("t", settings(concurrency))
    worker = Streaming(router, capacity=capacity)
    clients = {user: router.connected(ROOM, user=user) for user in users}
    return router, worker, clients


def say(router: Router, clients: dict[str, Client], *texts: str) -> None:
    """Send texts, each by the user of its first letter."""
    for text in texts:
        router.say(clients[text[0]], text)
    router.run()


def held(worker: Streaming) -> list[str]:
    """Return the texts of the deliveries that a worker holds."""
    worker.sync()
    return sorted(worker.given[number][0].parts[0].text.text for number in worker.worker.held)


def number_of(worker: Streaming, text: str) -> int:
    worker.sync()
    found = [n for n, (message, _) in worker.given.items() if message.parts[0].text.text == text]
    return found[-1]


def settle(worker: Streaming, text: str, **outcome: dict[str, int]) -> None:
    worker.settle(number_of(worker, text), **outcome)
    worker.router.run()


def test_by_default_a_group_waits_for_each_answer() -> None:
    router, worker, clients = group(0, "x", "y")
    say(router, clients, "x1", "y1", "x2")
    for text in ("x1", "y1", "x2"):
        assert held(worker) == [text]
        settle(worker, text)
    check_all(router.core, router.log, at_rest=True)


def test_users_do_not_wait_for_each_other_but_for_their_own_answers() -> None:
    router, worker, clients = group(3, "x", "y", "z")
    say(router, clients, "x1", "x2", "y1", "z1", "y2")
    assert held(worker) == ["x1", "y1", "z1"]
    settle(worker, "y1")
    assert held(worker) == ["x1", "y2", "z1"]
    settle(worker, "x1")
    assert held(worker) == ["x2", "y2", "z1"]
    check_all(router.core, router.log, at_rest=True)


def test_no_more_are_delivered_at_a_time_than_the_agent_allows() -> None:
    router, worker, clients = group(2, "w", "x", "y", "z")
    say(router, clients, "w1", "x1", "y1", "z1", "w2")
    assert held(worker) == ["w1", "x1"]
    settle(worker, "w1")
    assert held(worker) == ["x1", "y1"]
    settle(worker, "x1")
    settle(worker, "y1")
    assert held(worker) == ["w2", "z1"]
    check_all(router.core, router.log, at_rest=True)


def test_a_failed_message_delays_only_its_author_and_takes_no_place() -> None:
    router, worker, clients = group(2, "x", "y", "z")
    say(router, clients, "x1", "x2", "y1", "z1")
    settle(worker, "x1", retry={"after_ms": 2000})
    assert held(worker) == ["y1", "z1"]
    settle(worker, "z1")
    pass_time(router, 2.0, worker)
    assert held(worker) == ["x1", "y1"]
    settle(worker, "x1")
    assert held(worker) == ["x2", "y1"]
    check_all(router.core, router.log, at_rest=True)


def test_a_withdrawn_message_gives_its_place_to_another() -> None:
    router, worker, clients = group(2, "x", "y", "z")
    say(router, clients, "x1", "y1")
    router.say(clients["z"], "z1", ident="z1")
    say(router, clients, "x2")
    router.frame(clients["z"], cancel={"client_id": "z1"})
    router.run()
    settle(worker, "x1")
    assert held(worker) == ["x2", "y1"]
    check_all(router.core, router.log, at_rest=True)


def test_the_deliveries_of_a_killed_worker_are_repeated_in_the_order_of_each_author() -> None:
    router, worker, clients = group(2, "x", "y")
    say(router, clients, "x1", "x2", "y1", "y2")
    worker.detach()
    second = Streaming(router)
    router.run()
    assert held(second) == ["x1", "y1"]
    settle(second, "x1")
    settle(second, "y1")
    assert held(second) == ["x2", "y2"]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2)])
def test_a_change_of_the_setting_applies_at_once_to_what_waits(before: int, after: int) -> None:
    router, worker, clients = group(before, "x", "y", "z")
    say(router, clients, "x1", "y1", "z1", "x2", "y2", "z2")
    first = held(worker)
    router.declare("t", settings(after))
    router.run()
    now = held(worker)
    assert now == ["x1", "y1", "z1"][: max(before, after)]
    assert len(first) == before
    order = dict.fromkeys("xyz", 0)
    while texts := held(worker):
        text = texts[-1]
        settle(worker, text)
        assert int(text[1]) == order[text[0]] + 1, "each author's messages are answered in order"
        order[text[0]] += 1
        assert len(held(worker)) <= max(before, after)
        check_all(router.core, router.log, at_rest=True)
    assert set(order.values()) == {2}


def test_a_delay_survives_a_change_of_the_setting() -> None:
    router, worker, clients = group(2, "x", "y")
    say(router, clients, "x1", "y1")
    settle(worker, "x1", retry={"after_ms": 3000})
    settle(worker, "y1", retry={"after_ms": 1000})
    router.declare("t", settings(1))
    router.run()
    check_all(router.core, router.log, at_rest=True)
    pass_time(router, 2.0, worker)
    assert held(worker) == []
    pass_time(router, 1.0, worker)
    assert held(worker) == ["x1"]
    settle(worker, "x1")
    assert held(worker) == ["y1"]
    check_all(router.core, router.log, at_rest=True)


def test_an_erased_group_leaves_nothing_behind() -> None:
    router, worker, clients = group(2, "x", "y", "z")
    say(router, clients, "x1", "y1", "z1", "x2")
    settle(worker, "x1", retry={"after_ms": 3000})
    router.reset(ROOM)
    router.run()
    assert not list(router.core.agent_queues.get("t", "a").lanes)  # type: ignore[union-attr]
    check_all(router.core, router.log, at_rest=True)


def test_a_delay_follows_the_author_whose_message_has_failed() -> None:
    router, worker, clients = group(2, "x", "y")
    say(router, clients, "y1", "y2", "x3")
    router.declare("t", settings(1))
    settle(worker, "x3", retry={"after_ms": 3000})
    router.declare("t", settings(2))
    settle(worker, "y1")
    assert held(worker) == ["y2"]
    router.reset(ROOM)
    router.declare("t", settings(1))
    settle(worker, "y2")
    say(router, clients, "x4")
    assert held(worker) == ["x4"]
    settle(worker, "x4")
    check_all(router.core, router.log, at_rest=True)
