"""Heartbeats: pings, and closes of silent clients."""

from __future__ import annotations

from trunkline_edge.core.connection import ConnectionState

from tests.edge.core.core_harness import (
    ack,
    deliver,
    heard,
    linked_core,
    open_all,
    opened,
    pinged,
    say,
)


def test_a_client_that_is_heard_is_pinged_for_ever() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    for _ in range(10):
        client.missed_heartbeats = 0
        core.sessions.heartbeat([client])
        assert pinged(core) == [client]
    assert client.state is ConnectionState.OPEN


def test_a_client_that_is_silent_for_two_rounds_is_closed() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.sessions.heartbeat([client])
    assert pinged(core) == [client]
    core.sessions.heartbeat([client])
    assert pinged(core) == [client]
    core.sessions.heartbeat([client])
    assert pinged(core) == []
    assert heard(client) == ["closing HEARTBEAT_LOST"]
    core.sessions.heartbeat([client])
    assert pinged(core) == []


def test_a_sign_of_life_between_rounds_starts_the_count_again() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    for _ in range(5):
        core.sessions.heartbeat([client])
        core.sessions.heartbeat([client])
        client.missed_heartbeats = 0
    assert client.state is ConnectionState.OPEN


def test_a_client_that_is_not_read_from_is_not_taken_for_dead() -> None:
    core = linked_core(unanswered=1)
    [client] = open_all(core, "a")
    core.client_frames.received(client, say("m1"))
    core.link_lost()
    for _ in range(10):
        core.sessions.heartbeat([client])
        assert pinged(core) == [client]
    core.linked()
    deliver(core, ack(client, "m1"))
    core.sessions.heartbeat([client])
    pinged(core)
    core.sessions.heartbeat([client])
    assert pinged(core) == []


def test_who_is_not_accepted_yet_is_neither_pinged_nor_closed() -> None:
    core = linked_core()
    client = opened(core)
    for _ in range(5):
        core.sessions.heartbeat([client])
        assert pinged(core) == []
    assert client.state is ConnectionState.OPENING
