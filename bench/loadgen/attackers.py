"""Load generator: one client that attacks the edge with hostile input, as fast as the edge takes it.

Command: `attack`. A connection that the server closes is opened again after a short pause. The process shares
the machine with the servers that it attacks, while a real attacker would not. It therefore runs with the
lowest priority.
"""

import asyncio
import functools
import os
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from bench.commands import Result, emit, serve_commands
from bench.loadgen.connector import raise_file_limit
from bench.loadgen.flooders import LOWEST_PRIORITY
from bench.loadgen.hostile_input import ATTACKS, Attack
from bench.loadgen.websocket_frames import HEAD_END, upgrade_request

REOPEN_AFTER_S = 0.05


class Attacker(asyncio.Protocol):
    """Connection that sends an attack's bytes whenever the server takes them; `closed` is set at its end."""

    def __init__(self, attack: Attack, upgrade: bytes, counts: Counter[str]) -> None:
        self.closed = asyncio.Event()
        self._attack, self._upgrade, self._counts = attack, upgrade, counts
        self._is_open = False
        self._received = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self.transport.set_write_buffer_limits(high=0)
        self._counts["opened"] += 1
        if self._upgrade:
            self.transport.write(self._upgrade)
        else:
            self._begin()

    def data_received(self, data: bytes) -> None:
        """Begin once the handshake has been answered; ignore everything after it."""
        if self._upgrade and not self._is_open:
            self._received += data
            if HEAD_END in self._received:
                if not self._received.startswith(b"HTTP/1.1 101"):
                    self._counts["rejected"] += 1
                    self.transport.abort()
                    return
                self._begin()

    def resume_writing(self) -> None:
        """Send again: the server has taken everything."""
        if self._is_open and not self._attack.is_held:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._counts["closed"] += 1
        self.closed.set()

    def _begin(self) -> None:
        self._is_open = True
        if not self._attack.reads:
            self.transport.pause_reading()
        self._send()

    def _send(self) -> None:
        if self.transport.is_closing():
            return
        self._counts["bytes"] += len(self._attack.chunk)
        self.transport.write(self._attack.chunk)
        if not self._attack.is_held and not self.transport.get_write_buffer_size():
            # The kernel took everything, so writing was not paused and no resume follows.
            asyncio.get_running_loop().call_soon(self.resume_writing)


async def attack(port: int, name: str, tenant: str, target: str, seconds: float) -> Result:
    """Run an attack for some seconds; return how much was sent, and how often the server closed."""
    plan, counts, loop = ATTACKS[name](tenant), Counter[str](), asyncio.get_running_loop()
    upgrade = upgrade_request(f"127.0.0.1:{port}", target, plan.subprotocol) if plan.subprotocol else b""
    began = time.monotonic()

    async def keep_open() -> None:
        while True:
            make = functools.partial(Attacker, plan, upgrade, counts)
            try:
                transport, attacker = await loop.create_connection(make, "127.0.0.1", port)
            except OSError:
                counts["refused"] += 1
            else:
                try:
                    await attacker.closed.wait()
                finally:
                    transport.abort()
            await asyncio.sleep(REOPEN_AFTER_S)

    connections = [asyncio.create_task(keep_open()) for _ in range(plan.connections)]
    await asyncio.wait(connections, timeout=seconds)
    for connection in connections:
        connection.cancel()
    outcomes = await asyncio.gather(*connections, return_exceptions=True)
    elapsed_s = time.monotonic() - began
    faults = [str(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    if faults:
        raise RuntimeError(faults[0])
    return {"attacked_s": elapsed_s, "sent_mb_per_s": counts["bytes"] / elapsed_s / 1e6, **counts}


async def main(port: int) -> None:
    """Serve commands."""
    os.nice(LOWEST_PRIORITY)
    raise_file_limit()
    emit(ready=True)
    await serve_commands({"attack": functools.partial(attack, port)})


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
