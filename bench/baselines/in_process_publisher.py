"""Publisher in the process of a baseline, its most favourable place."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.commands import Result
from bench.loadgen.chat_text import chat_text
from bench.loadgen.open_loop import OpenLoop, PreciseTimer


async def publish(broadcast: Callable[[str], Awaitable[None]], rate: float | None, seconds: float) -> Result:
    """Broadcast chat texts for `seconds`, at `rate` or, if that is None, as fast as possible."""
    start_ns = time.monotonic_ns()
    if rate is None:
        accepted = await _flat_out(broadcast, start_ns + int(seconds * 1e9))
        offered = accepted
    else:
        accepted = await _paced(broadcast, OpenLoop(rate, seconds, start_ns), start_ns + int(seconds * 1e9))
        offered = int(rate * seconds)
    return {"offered": offered, "accepted": accepted, "start_ns": start_ns, "refused": {}}


async def _flat_out(broadcast: Callable[[str], Awaitable[None]], end_ns: int) -> int:
    number = 0
    while (now := time.monotonic_ns()) < end_ns:
        await broadcast(chat_text(number, now))
        number += 1
        await asyncio.sleep(0)
    return number


async def _paced(broadcast: Callable[[str], Awaitable[None]], schedule: OpenLoop, end_ns: int) -> int:
    timer = PreciseTimer()
    while schedule.taken < schedule.total and (now := time.monotonic_ns()) < end_ns:
        due = schedule.take(now, at_most=1)
        for number in due:
            await broadcast(chat_text(number, schedule.due_ns(number)))
            await asyncio.sleep(0)
        if not due:
            await timer.wait(schedule.wait_s(now))
    timer.stop()
    return schedule.taken
