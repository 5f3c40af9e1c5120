"""Startup and shutdown of a process: event loop, signals, readiness line, start errors."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any


class StartError(Exception):
    """The process cannot start; the text says why, and what to do."""


def run(name: str, serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run `serve`, which must return soon after its event is set, as SIGTERM and SIGINT do.

    Returns the exit code: 1, with one line on stderr, if `serve` raises StartError.
    """
    # Objects alive now stay; later garbage is mostly acyclic, so it needs few collections.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        with asyncio.Runner(loop_factory=_event_loop()) as runner:
            runner.run(_serve_until_signalled(serve))
    except StartError as error:
        # For the person who starts the process: no log line.
        print(f"{name}: {error}", file=sys.__stderr__)
        return 1
    return 0


async def _serve_until_signalled(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(stop)


def announce_listening(address: str) -> None:
    """Print the readiness line on stdout: JSON with the address that the process listens on."""
    print(json.dumps({"listening": address}), flush=True)  # noqa: T201


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop if installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
