"""Items of an asynchronous or a blocking source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

#: Answer of `next` at the end of a blocking source.
_END = object()


def items_of(source: AsyncIterable[T] | Iterable[T]) -> AsyncGenerator[T, None]:
    """Iterates over a source, and closes it when the iteration ends or is closed.

    Raises TypeError if the source is a string: that would be written character by character.
    """
    if isinstance(source, (str, bytes)):
        raise TypeError("write_from() takes an iterable; write a string by write()")
    return _asynchronous(source) if isinstance(source, AsyncIterable) else _blocking(source)


async def _asynchronous(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    iterator = aiter(source)
    try:
        async for item in iterator:
            yield item
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def _blocking(source: Iterable[T]) -> AsyncGenerator[T, None]:
    """Runs each step of a source in a thread of the loop's default executor.

    A running step cannot be stopped. If the iteration is closed meanwhile, the source is closed after the
    step, and nothing waits for that.
    """
    loop = asyncio.get_running_loop()
    # One context for all steps, as if the source ran in one thread.
    context = copy_context()
    iterator = iter(source)
    close: Callable[[], object] = getattr(iterator, "close", lambda: None)
    step: asyncio.Future[Any] | None = None
    try:
        while True:
            step = loop.run_in_executor(None, context.run, partial(next, iterator, _END))
            item = await asyncio.shield(step)
            if item is _END:
                return
            yield item
    finally:
        if step is None or step.done():
            await asyncio.shield(loop.run_in_executor(None, context.run, close))
        else:
            step.add_done_callback(partial(_close_after, loop, context, close))


def _close_after(
    loop: asyncio.AbstractEventLoop,
    context: Context,
    close: Callable[[], object],
    step: asyncio.Future[object],
) -> None:
    if not step.cancelled():
        step.exception()  # nobody else retrieves it
    if not loop.is_closed():
        loop.run_in_executor(None, context.run, close)
