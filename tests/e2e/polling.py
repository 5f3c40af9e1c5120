"""Polling for a condition, with a timeout."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = patient(20)


async def wait_until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until the condition holds; fail with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.01)
