"""A thread that runs an event loop's blocking calls, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Call = tuple[asyncio.Future[Any], Callable[[], Any]]


class CallThread:
    """A thread for blocking calls; half the cost of an executor, which matters once per commit."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call the function on the thread. Cancelling ends the wait, not the call."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._calls.put((future, lambda: function(*args, **kwargs)))
        return await future

    def close(self) -> None:
        """End the thread after the calls made so far; blocks until then."""
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            future.get_loop().call_soon_threadsafe(_complete, future, result, error)
            # Do not keep them alive until the next call.
            del call, future, function, result, error


def _complete(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
