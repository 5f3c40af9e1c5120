"""Lines of standard input, read without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator


async def stdin_lines() -> AsyncIterator[str]:
    """Iterates over the lines of standard input: a terminal, a pipe or a file.

    A daemon thread reads the descriptor itself, because a thread that waits in `sys.stdin` cannot be
    ended. It reads at most 64 KiB ahead of the lines taken.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    taken = threading.Semaphore(1)

    def read() -> None:
        while taken.acquire():
            chunk = os.read(0, 1 << 16)
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop is closed
            if not chunk:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
        taken.release()
    if rest:
        yield rest.decode(errors="replace")
