"""Lookup of the dialect at a path."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from trunkline_edge.dialects import registry
from trunkline_edge.dialects.dialect import Dialect
from trunkline_edge.dialects.native.handshake import DEFAULT, NATIVE, connect
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.registry import DialectRegistry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def clock() -> datetime:
    return EPOCH


def dialect(name: str, socket: str, stream: str = "/none") -> Callable[[object], Dialect]:
    made = Dialect(
        name, connect, DEFAULT, websocket_paths=(Path(socket),), event_stream_paths=(Path(stream),)
    )
    return lambda _: made


def test_the_first_that_has_a_path_is_spoken_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dialect("one", "/ws/{a}/x", "/events/{b}"), dialect("two", "/ws/{a}/{b}")
    monkeypatch.setattr(registry, "DIALECTS", made)
    found = DialectRegistry(clock)
    one = found.socket("/ws/1/x")
    two = found.socket("/ws/1/y%2Fz")
    events = found.stream("/events/3")
    assert one is not None
    assert (one.dialect.name, one.parameters) == ("one", {"a": "1"})
    assert two is not None
    assert (two.dialect.name, two.parameters) == ("two", {"a": "1", "b": "y/z"})
    assert events is not None
    assert (events.dialect.name, events.parameters) == ("one", {"b": "3"})
    assert found.socket("/events/3") is None
    assert found.stream("/ws/1/x") is None


def test_no_two_dialects_have_one_name_or_one_path() -> None:
    dialects = DialectRegistry(clock).dialects
    assert NATIVE in dialects
    names = [each.name for each in dialects]
    sockets = [path.text for each in dialects for path in each.websocket_paths]
    served = [(route.method, route.path.text) for each in dialects for route in each.routes]
    for each in (names, sockets, served):
        assert len(set(each)) == len(each)
    reached = [each.name for each in dialects for path in each.websocket_paths]
    found = [DialectRegistry(clock).socket(path.replace("{", "x").replace("}", "")) for path in sockets]
    assert [each.dialect.name if each else "" for each in found] == reached
