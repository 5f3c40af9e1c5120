"""The edge's runtime: writes and effects of the core are carried out."""

from __future__ import annotations

from typing import get_args

import pytest
from trunkline_edge.auth.jwks import FetchFailed
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.effects import Effect, Ping
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.client_transport import ClientTransport

from tests.edge.core.core_harness import batch, connected, join, message, opened, publish, topic


class BrokenError(Exception):
    """Raised by a FakeTransport."""


class FakeTransport(ClientTransport):
    """A transport that records what is written, or raises once."""

    buffered = 0
    is_closing = False

    def __init__(self) -> None:
        super().__init__("192.0.2.1")
        self.written = b""
        self.pings = 0
        self.breaks = False

    def write(self, data: bytes) -> None:
        self._raise()
        self.written += data

    def ping(self) -> None:
        self._raise()
        self.pings += 1

    def _raise(self) -> None:
        if self.breaks:
            self.breaks = False
            raise BrokenError

    def admitted(self, frame_bytes: int) -> None: ...
    def reject(self, reason: object) -> None: ...
    def reject_connection(self, codec: object, closing: object, data: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def no_fetch(url: str) -> bytes:
    """Fail every fetch."""
    raise FetchFailed(url)


def open_clients(runtime: EdgeRuntime, count: int) -> dict[Connection, FakeTransport]:
    """Open clients that are subscribed to topic 1."""
    runtime.linked()
    clients = {opened(runtime.core): FakeTransport() for _ in range(count)}
    for client, transport in clients.items():
        runtime._transports[client] = transport
    runtime.link_received(
        batch(topic(1, "team"), *map(connected, clients), *(join(one, 1) for one in clients))
    )
    for transport in clients.values():
        transport.written = b""
    return clients


def test_every_effect_has_an_applier() -> None:
    runtime = EdgeRuntime(EdgeSettings(), no_fetch)
    assert set(runtime._appliers) == set(get_args(Effect))


async def test_effects_behind_one_that_raises_are_carried_out_by_the_next_step() -> None:
    runtime = EdgeRuntime(EdgeSettings(), no_fetch)
    clients = open_clients(runtime, 3)
    first, *others = clients.values()
    first.breaks = True
    runtime.link_wake.clear()
    with pytest.raises(BrokenError):
        runtime.step(runtime.core.effects.extend, [Ping(client) for client in clients])
    runtime.step(lambda: None)
    assert [first.pings, *(other.pings for other in others)] == [0, 1, 1]


async def test_writes_behind_one_that_raises_are_carried_out_by_the_next_step() -> None:
    runtime = EdgeRuntime(EdgeSettings(), no_fetch)
    clients = open_clients(runtime, 5)
    # The order is not known: each raises the first time that it is written to.
    for transport in clients.values():
        transport.breaks = True
    with pytest.raises(BrokenError):
        runtime.link_received(batch(publish(1, message("team", 1))))
    for transport in clients.values():
        transport.breaks = False
    runtime.step(lambda: None)
    assert sorted(transport.written.count(b"text 1") for transport in clients.values()) == [0, 1, 1, 1, 1]


async def test_the_link_is_woken_and_the_alarm_set_although_a_write_raises() -> None:
    runtime = EdgeRuntime(EdgeSettings(), no_fetch)
    [(client, transport)] = open_clients(runtime, 1).items()
    runtime.link_wake.clear()
    transport.breaks = True
    runtime.core.throttle.next_due = 1e9
    runtime.core.uplink.credit = 1
    runtime.core.uplink.add(0).closed.connection = client.number
    with pytest.raises(BrokenError):
        runtime.link_received(batch(publish(1, message("team", 1))))
    assert runtime.link_wake.is_set()
    assert runtime._alarm is not None
    runtime._alarm.cancel()
