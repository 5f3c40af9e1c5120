"""Calls wait: for their turn, or for being told that they are refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, QueuedCall, Tarpit

#: So many calls of one tenant wait for one another at most.
MAX_QUEUED = 100

_Context = grpc.aio.ServicerContext[Any, Any]

#: Turns that are no further apart come together, as what several calls say is one commit then. Of more at a
#: time others would feel something.
_TOGETHER_S = 0.004

#: Of the time that its caller still waits, a refusal takes no more than so much, so that it arrives.
_OF_PATIENCE = 0.8


async def turn(turns: FairCallQueue, size: int, context: _Context) -> bool:
    """Wait until it is the turn of a call of so many bytes; returns whether there was anything to wait for.

    One that is cancelled takes nothing from the others. Raises Refused RATE_LIMITED where its turn would be
    too late: at once where that can be known.
    """
    now = time.monotonic()
    if turns.take(size, now):
        return False
    came, refusals = asyncio.Event(), list[Refused]()

    def refused(reason: Refused) -> None:
        refusals.append(reason)
        came.set()

    mine = QueuedCall(size, came.set, refused)
    turns.wait(mine, _patience_s(context), now)
    if turns.timer is None:
        _pass_on(turns)
    try:
        await came.wait()
    except asyncio.CancelledError:
        turns.leave(mine)
        _pass_on(turns)
        raise
    if refusals:
        raise refusals[0]
    return True


def _pass_on(turns: FairCallQueue) -> None:
    """One timer for all that wait, while any does."""
    if turns.timer is not None:
        turns.timer.cancel()
    wait_s = turns.pass_on(time.monotonic())
    later = asyncio.get_running_loop().call_later
    turns.timer = later(max(wait_s, _TOGETHER_S), _pass_on, turns) if wait_s else None


class PerTenantLock:
    """Calls that hold up what all write, such as erasing: one at a time of each tenant.

    So that others wait for one of them at most.
    """

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Enter when no call of this tenant is in here. Raises Refused OVERLOADED where too many wait."""
        queue = self._queues.setdefault(tenant, _Queue())
        if queue.calls > MAX_QUEUED:
            problem = f"{MAX_QUEUED} calls of tenant {tenant} wait for one another"
            raise catalogue.OVERLOADED.refused(problem=problem)
        queue.calls += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.calls -= 1
            if not queue.calls:
                del self._queues[tenant]


class _Queue:
    """Of one tenant, while there is any call."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls = 0


async def rest(resting: Tarpit, size: int, context: _Context) -> None:
    """Wait until a refused call of so many bytes may be told so; no longer than its caller waits."""
    rest_s = resting.begin(size, time.monotonic())
    try:
        if rest_s:
            await asyncio.sleep(min(rest_s, _patience_s(context) * _OF_PATIENCE))
    finally:
        resting.end(size)


def _patience_s(context: _Context) -> float:
    """How long the caller still waits for an answer."""
    remaining_s = context.time_remaining()
    return inf if remaining_s is None else remaining_s
