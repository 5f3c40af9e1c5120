"""Signals with a time to live, as the router keeps them and ends them early."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.frame_pb2 import (
    SIGNAL_END_EXPIRED,
    SIGNAL_END_LEFT,
    SIGNAL_END_STOPPED,
    SignalEnd,
    SignalFrame,
)
from trunkline_router.core.directory import live_signals
from trunkline_router.core.values.topics import GROUP, TopicKey

from tests.router.core.harness.client import Client
from tests.router.core.harness.router import ROOM, Router

OTHER: TopicKey = ("t", "a", "w", GROUP, "other")


def signals(client: Client) -> list[tuple[str, str, int, SignalEnd.ValueType]]:
    """Return the signals that a client was sent: user, name, time to live and end."""
    found = [frame.signal for frame in client.frames if frame.HasField("signal")]
    return [(one.user, one.name, one.ttl_ms, one.end) for one in found]


def send(router: Router, client: Client, name: str = "typing", ttl_ms: int = 5000, **more: Any) -> None:
    router.frame(client, signal={"name": name, "ttl_ms": ttl_ms, **more})


def stop(router: Router, client: Client, name: str = "typing", **more: Any) -> None:
    router.frame(client, signal={"name": name, "end": SIGNAL_END_STOPPED, **more})


def living(router: Router) -> int:
    """Return the number of living signals, checked against every table."""
    table = router.core.directory.live_signals
    assert sum(map(len, table._signals.values())) == len(table)
    assert {s for each in table._sent.values() for s in each} == set(table._deadlines._ticks)
    for place, use in table._uses.items():
        of_place = [s for s in table._deadlines._ticks if place in (s.key, s.key[0])]
        assert (use.count, use.bytes) == (len(of_place), sum(s.size for s in of_place))
    return len(table)


def test_its_user_ends_a_signal_early() -> None:
    router = Router()
    alice, bob = router.connected(ROOM, user="alice"), router.connected(ROOM, user="bob")
    send(router, alice)
    stop(router, alice)
    assert signals(bob) == [("alice", "typing", 5000, 0), ("alice", "typing", 0, SIGNAL_END_STOPPED)]
    assert signals(alice) == []
    assert living(router) == 0


def test_another_users_signal_of_the_name_lives_on() -> None:
    router = Router()
    alice, bob = router.connected(ROOM, user="alice"), router.connected(ROOM, user="bob")
    send(router, alice)
    send(router, bob)
    stop(router, bob)
    assert living(router) == 1


def test_an_end_is_published_though_the_router_does_not_know_the_signal() -> None:
    # The edges may keep it from before a restart.
    router = Router()
    alice, bob = router.connected(ROOM, user="alice"), router.connected(ROOM, user="bob")
    send(router, alice)
    router.restart()
    for name in router.edges:
        router.link(name)
    router.run()
    stop(router, alice)
    assert signals(bob)[-1] == ("alice", "typing", 0, SIGNAL_END_STOPPED)


@pytest.mark.parametrize("edge", ["e1", "e2"])
def test_closing_the_connection_ends_its_signals(edge: str) -> None:
    router = Router()
    alice = router.connected(ROOM, user="alice")
    bob = router.connected(ROOM, user="bob", edge=edge)
    send(router, alice)
    send(router, alice, name="looking")
    router.close(alice)
    ends = {(name, end) for _, name, _, end in signals(bob) if end}
    assert ends == {("typing", SIGNAL_END_LEFT), ("looking", SIGNAL_END_LEFT)}
    assert living(router) == 0


def test_a_signal_lives_until_the_last_connection_that_sent_it_is_gone() -> None:
    router = Router()
    phone, laptop = router.connected(ROOM, user="alice"), router.connected(ROOM, user="alice", edge="e2")
    bob = router.connected(ROOM, user="bob")
    send(router, phone)
    send(router, laptop)
    router.close(phone)
    assert [end for *_, end in signals(bob)] == [0, 0]
    router.close(laptop)
    assert [end for *_, end in signals(bob)] == [0, 0, SIGNAL_END_LEFT]


def test_leaving_a_group_ends_the_signals_there_only() -> None:
    router = Router()
    alice, bob = router.connected(user="alice"), router.connected(ROOM, user="bob")
    for room in (ROOM, OTHER):
        router.subscribe(alice, room)
        router.run()
        send(router, alice, conversation={"kind": GROUP, "id": room[4]})
    router.unsubscribe(alice, ROOM)
    assert signals(bob)[-1] == ("alice", "typing", 0, SIGNAL_END_LEFT)
    assert "left" not in [end for *_, end in signals(alice)]
    assert living(router) == 1


def test_losing_the_link_ends_the_signals_of_its_clients() -> None:
    router = Router()
    alice, bob = router.connected(ROOM, user="alice", edge="e2"), router.connected(ROOM, user="bob")
    send(router, alice)
    router.break_link("e2")
    assert signals(bob)[-1] == ("alice", "typing", 0, SIGNAL_END_LEFT)
    assert living(router) == 0


def test_a_new_link_is_sent_what_still_lives_with_the_time_that_remains() -> None:
    router = Router()
    alice = router.connected(ROOM, user="alice")
    send(router, alice)
    router.tick(2)
    sent: list[SignalFrame] = []
    edge = router.edge("e2")
    received = edge._publish
    edge._publish = lambda entry: (sent.append(entry.publish.frame.signal), received(entry))[1]  # type: ignore[method-assign]
    router.connected(ROOM, user="bob", edge="e2")
    assert [(one.user, one.name, one.ttl_ms) for one in sent] == [("alice", "typing", 3000)]
    router.tick(3)
    assert living(router) == 0


def test_the_edge_of_the_only_listener_gets_its_signal_to_keep() -> None:
    router = Router()
    alice = router.connected(ROOM, user="alice")
    kept: list[int] = []
    alice.edge._publish = lambda entry: kept.append(getattr(entry.publish, "except"))  # type: ignore[method-assign]
    send(router, alice)
    send(router, alice, ttl_ms=0)
    assert kept == [alice.number]


def test_a_repeated_signal_lives_longer() -> None:
    router = Router()
    alice = router.connected(ROOM, user="alice")
    send(router, alice)
    router.tick(4)
    send(router, alice)
    router.tick(4)
    assert living(router) == 1
    router.tick(1.25)
    assert living(router) == 0


@pytest.mark.parametrize(
    "signal",
    [
        {"ttl_ms": 300_001},
        {"ttl_ms": 1, "end": SIGNAL_END_STOPPED},
        {"ttl_ms": 0, "end": SIGNAL_END_LEFT},
        {"ttl_ms": 0, "end": SIGNAL_END_EXPIRED},
        {"ttl_ms": 0, "end": 9},
    ],
)
def test_bad_times_and_ends_are_refused(signal: dict[str, Any]) -> None:
    router = Router()
    alice, bob = router.connected(ROOM, user="alice"), router.connected(ROOM, user="bob")
    send(router, alice, **signal)
    assert alice.frames[-1].error.code == "INVALID_ARGUMENT"
    assert signals(bob) == []
    assert living(router) == 0


@pytest.mark.parametrize(
    ("bound", "limit"),
    [
        ("MAX_OF_CONNECTION", 2),
        ("MAX_OF_CONVERSATION", 2),
        ("MAX_OF_TENANT", 2),
        ("MAX_OF_CONVERSATION_BYTES", 60),
        ("MAX_OF_TENANT_BYTES", 60),
    ],
)
def test_a_signal_beyond_a_bound_is_refused_and_not_delivered(
    bound: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_signals, bound, limit)
    router = Router()
    alice, bob = router.connected(ROOM, user="alice"), router.connected(ROOM, user="bob")
    for name in "abc":
        send(router, alice, name)
    error = alice.frames[-1].error
    assert (error.code, error.retryable) == ("TOO_MANY_SIGNALS", True)
    assert [name for _, name, *_ in signals(bob)] == ["a", "b"]
    assert living(router) == 2
    # Those that live may be sent again, and one that ends makes room.
    send(router, alice, "a")
    stop(router, alice, "b")
    send(router, alice, "c")
    assert [(name, end) for _, name, _, end in signals(bob)][2:] == [("a", 0), ("b", 1), ("c", 0)]
    # Signals that do not live are not bounded.
    send(router, alice, "d", ttl_ms=0)
    assert signals(bob)[-1][1] == "d"


def test_a_full_tenant_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_signals, "MAX_OF_TENANT", 1)
    router = Router()
    here, there = router.connected(ROOM, user="x"), router.connected(("u", *ROOM[1:]), user="x")
    send(router, here)
    send(router, there)
    assert "error" not in there.kinds()
    assert living(router) == 2
    assert signals(here) == signals(there) == []
