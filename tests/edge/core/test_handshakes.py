"""Handshakes in progress: their limit and their deadline."""

from __future__ import annotations

from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.core.effects import RejectConnection, RejectHandshake
from trunkline_edge.core.handshakes import Handshakes
from trunkline_edge.core.limits import EdgeLimits

from tests.edge.core.core_harness import linked_core, opened


def test_no_more_handshakes_begin_than_the_limit() -> None:
    handshakes = Handshakes(EdgeLimits(max_handshakes=2))
    first = handshakes.begin(0)
    handshakes.begin(0)
    assert not handshakes.has_room
    handshakes.end(first)
    handshakes.end(first)
    assert (handshakes.has_room, len(handshakes), first in handshakes) == (True, 1, False)


def test_a_handshake_expires_at_its_deadline_once() -> None:
    handshakes = Handshakes(EdgeLimits(handshake_timeout_s=10))
    first, second, ended = handshakes.begin(0), handshakes.begin(1), handshakes.begin(0)
    handshakes.end(ended)
    assert handshakes.take_expired(9.9) == []
    assert handshakes.take_expired(10) == [first]
    assert handshakes.take_expired(11) == [second]
    assert handshakes.is_empty


def test_a_client_without_connection_is_rejected_when_its_handshake_expires() -> None:
    core = linked_core(handshake_timeout_s=10)
    handshake = core.handshakes.begin(0)
    core.tick(10, wall_s=0)
    [effect] = core.effects
    assert isinstance(effect, RejectHandshake)
    assert (effect.handshake, effect.reason.entry.code) == (handshake, "HANDSHAKE_TIMEOUT")


def test_a_connection_that_the_router_does_not_answer_is_rejected_at_the_deadline() -> None:
    core = linked_core(handshake_timeout_s=10)
    handshake = core.handshakes.begin(0)
    handshake.connection = opened(core)
    core.tick(10, wall_s=0)
    [effect] = core.effects
    assert isinstance(effect, RejectConnection)
    assert (effect.connection, effect.closing.reason) == (handshake.connection, "HANDSHAKE_TIMEOUT")
    assert handshake.connection.state is ConnectionState.CLOSING


def test_without_a_link_the_reason_is_the_router() -> None:
    core = linked_core(handshake_timeout_s=10)
    core.link_lost()
    core.handshakes.begin(0)
    core.tick(10, wall_s=0)
    [effect] = core.effects
    assert isinstance(effect, RejectHandshake)
    assert effect.reason.entry.code == "ROUTER_UNAVAILABLE"
