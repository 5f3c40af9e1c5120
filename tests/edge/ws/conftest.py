"""Short times for every test here, and both event loops that an edge runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

import edge.link.client
import edge.shell
import edge.ws.line


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test on both."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.shell, "TICK_S", 0.02)
    monkeypatch.setattr(edge.shell, "CONGESTED_TICK_S", 0.01)
    monkeypatch.setattr(edge.shell, "STALL_S", 0.2)
    monkeypatch.setattr(edge.ws.line, "CLOSE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(edge.link.client, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(edge.link.client, "LAST_BACKOFF_S", 0.02)
    monkeypatch.setattr(edge.link.client, "WELCOME_TIMEOUT_S", 0.5)
