"""A thread for work that would block the event loop: large JSON, and values by the thousand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from trunkline.v1 import catalogue

#: Smaller bodies and responses never wait for the thread.
LARGE_BYTES = 16 << 10

#: Calls that wait for the thread, beyond which they are refused with OVERLOADED: of one tenant, and of all.
MAX_WAITING_OF_TENANT = 16
MAX_WAITING = 256

P = ParamSpec("P")
T = TypeVar("T")


class FairWorker:
    """Runs one call at a time, because threads compete with the event loop for the interpreter.

    Tenants take turns, so that one with many calls delays another by one call, not by all of them.
    """

    def __init__(self) -> None:
        self._is_busy = False
        #: The turns that the waiting calls of each tenant wait for; the next tenant first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._waiting_count = 0

    async def run(self, tenant: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call in the thread once it is the tenant's turn.

        Raises what the call raises, or Refused OVERLOADED. A call that has begun is not cancelled: the next
        one waits for its end.
        """
        waiting = len(self._waiting.get(tenant, ()))
        if waiting >= MAX_WAITING_OF_TENANT or self._waiting_count >= MAX_WAITING:
            raise catalogue.OVERLOADED.refused(problem="other large requests are being read")
        return await self.run_later(tenant, call, *args, **kwargs)

    async def run_later(self, tenant: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the same without a bound, for callers that have one, such as that of streams."""
        if self._is_busy:
            await self._turn(tenant)
        self._is_busy = True
        try:
            running = asyncio.get_running_loop().run_in_executor(None, lambda: call(*args, **kwargs))
        except BaseException:
            self._next()
            raise
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            # The caller may be gone, and nobody else retrieves it.
            running.exception()
        self._next()

    async def _turn(self, tenant: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._waiting_count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It came at the same time.
                self._next()
            raise

    def _next(self) -> None:
        """Pass the thread on to the next call that was not cancelled."""
        self._is_busy = False
        while self._waiting:
            tenant = next(iter(self._waiting))
            waiting = self._waiting.pop(tenant)
            if not waiting:
                continue
            turn = waiting.popleft()
            self._waiting_count -= 1
            if waiting:
                # Behind the others.
                self._waiting[tenant] = waiting
            if not turn.cancelled():
                self._is_busy = True
                turn.set_result(None)
                return
