"""A process of Trunkline: its event loop, its first line, and why it could not start."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any


class StartError(Exception):
    """The process cannot start; the text says why and what to do."""


def run(name: str, serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run `serve` until it returns, which it is to do once the event it is given is set.

    SIGTERM and SIGINT set the event. Returns the exit code: 1, with one line on stderr, where `serve`
    raises StartError.
    """
    # What is here now stays; the rest is garbage without cycles, which needs no collector.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=_event_loop()) as runner:
            runner.run(_until_told(serve))
    except StartError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def _until_told(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(stop)


def say_listening(address: str) -> None:
    """Tell whoever started the process, in one line of JSON on stdout, that it is ready, and where."""
    print(json.dumps({"listening": address}), flush=True)  # noqa: T201


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop where it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
