"""Short timeouts for every test here, and both event loops that an edge runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import trunkline_edge.http.protocol
import trunkline_edge.link.attempts
import trunkline_edge.link.client
import trunkline_edge.link.owner_watch
import trunkline_edge.runtime
import trunkline_edge.transport.client_protocol
import trunkline_edge.transport.lingering_close
import uvloop

from tests.support.patience import under_load


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test on both event loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stretched alike: which of them comes first is part of what is tested.
    factor = under_load(1)
    monkeypatch.setattr(trunkline_edge.runtime, "TICK_S", 0.02 * factor)
    monkeypatch.setattr(trunkline_edge.runtime, "SHORT_TICK_S", 0.01 * factor)
    monkeypatch.setattr(trunkline_edge.runtime, "STALL_S", 0.2 * factor)
    monkeypatch.setattr(trunkline_edge.transport.client_protocol, "CLOSE_TIMEOUT_S", 0.5 * factor)
    monkeypatch.setattr(trunkline_edge.transport.lingering_close, "LINGER_S", 0.1 * factor)
    monkeypatch.setattr(trunkline_edge.http.protocol, "GRACE_S", 0.05 * factor)
    monkeypatch.setattr(trunkline_edge.link.attempts, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(trunkline_edge.link.attempts, "LAST_BACKOFF_S", 0.02)
    monkeypatch.setattr(trunkline_edge.link.owner_watch, "ANSWER_TIMEOUT_S", 0.2 * factor)
    monkeypatch.setattr(trunkline_edge.link.owner_watch, "RECHECK_S", 0.02 * factor)
    monkeypatch.setattr(trunkline_edge.link.owner_watch, "REWATCH_S", 0.02 * factor)
    monkeypatch.setattr(trunkline_edge.link.client, "WELCOME_TIMEOUT_S", 0.5 * factor)
