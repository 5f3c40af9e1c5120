"""Load generator: a bot as its author writes it, and users who ask it.

Command: `ask` (at a rate for some seconds; the bot answers, or raises each time).
"""

import asyncio
import sys
import time

import uvloop
from trunkline.v1.message_pb2 import ROLE_USER, Author, Message
from trunkline_client import Backend, Worker, address

from bench.commands import Result, emit, serve_commands
from bench.loadgen.open_loop import OpenLoop, due_items

AGENT = "bot"
MAX_BATCH = 64


class Bot:
    """The bot and its users."""

    def __init__(self, port: int, tenant: str) -> None:
        self._tenant = tenant
        self._fails = False
        self._handled = 0
        self._asked = 0
        self._backend = Backend(f"127.0.0.1:{port}")
        self._worker = Worker(f"127.0.0.1:{port}", tenant=tenant, agents=[AGENT], capacity=200)
        self._worker.handler(self._answer)

    async def _answer(self, message: Message) -> str:
        self._handled += 1
        if self._fails:
            raise RuntimeError("the model is down")
        return "yes"

    async def serve(self) -> None:
        """Attach the bot and serve commands."""
        running = asyncio.create_task(self._worker.run())
        async with self._backend:
            emit(ready=True)
            await serve_commands({"ask": self.ask})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def ask(self, rate: float, seconds: float, fails: bool) -> Result:
        """Ask at a rate, each user in a conversation of their own."""
        self._fails, self._handled = fails, 0
        start_ns = time.monotonic_ns()
        pace = OpenLoop(rate, seconds, start_ns)
        async for numbers in due_items(pace, start_ns + int(seconds * 1e9), MAX_BATCH):
            await asyncio.gather(*(self._say() for _ in numbers))
        return {"asked": pace.taken, "handled": self._handled}

    async def _say(self) -> None:
        self._asked += 1
        where = address(
            tenant=self._tenant, agent=AGENT, platform="web", conversation=f"person:p{self._asked}"
        )
        await self._backend.broadcast(where, "well?", author=Author(role=ROLE_USER, user=f"p{self._asked}"))


if __name__ == "__main__":
    uvloop.run(Bot(int(sys.argv[1]), sys.argv[2]).serve())
