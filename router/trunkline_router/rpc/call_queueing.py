"""Delays calls: until the rate limiter admits them, or until their refusal may be sent."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Any

import grpc.aio
from trunkline.v1.catalogue import Refused

from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, QueuedCall, Tarpit

_Context = grpc.aio.ServicerContext[Any, Any]

#: Minimum interval between admissions. Calls admitted together share a commit; other callers would notice a
#: longer interval.
_ADMISSION_INTERVAL_S = 0.004

#: Share of the caller's remaining deadline that the tarpit may use, so that the refusal still arrives.
_TARPIT_DEADLINE_SHARE = 0.8


async def wait_in_queue(queue: FairCallQueue, size: int, context: _Context) -> bool:
    """Wait until the queue admits a call of `size` bytes. Returns whether the call had to wait.

    A cancelled call takes nothing from the others. Raises Refused RATE_LIMITED if the call would wait too
    long, at once if that is known.
    """
    now = time.monotonic()
    if queue.try_take(size, now):
        return False
    decided, refusals = asyncio.Event(), list[Refused]()

    def refuse(reason: Refused) -> None:
        refusals.append(reason)
        decided.set()

    call = QueuedCall(size, decided.set, refuse)
    queue.enqueue(call, _remaining_s(context), now)
    if queue.timer is None:
        _admit_next(queue)
    try:
        await decided.wait()
    except asyncio.CancelledError:
        queue.remove(call)
        _admit_next(queue)
        raise
    if refusals:
        raise refusals[0]
    return True


def _admit_next(queue: FairCallQueue) -> None:
    """Admit the calls that may go on now, and set the queue's one timer while any is left."""
    if queue.timer is not None:
        queue.timer.cancel()
    wait_s = queue.admit_ready(time.monotonic())
    call_later = asyncio.get_running_loop().call_later
    queue.timer = call_later(max(wait_s, _ADMISSION_INTERVAL_S), _admit_next, queue) if wait_s else None


async def wait_in_tarpit(tarpit: Tarpit, size: int, context: _Context) -> None:
    """Delay the refusal of a call of `size` bytes, within the caller's deadline."""
    delay_s = tarpit.enter(size, time.monotonic())
    try:
        if delay_s:
            await asyncio.sleep(min(delay_s, _remaining_s(context) * _TARPIT_DEADLINE_SHARE))
    finally:
        tarpit.leave(size)


def _remaining_s(context: _Context) -> float:
    """Time left until the call's deadline; infinite without one."""
    remaining_s = context.time_remaining()
    return inf if remaining_s is None else remaining_s
