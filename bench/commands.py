"""How the harness talks with the processes it starts: one JSON object a line, orders in, answers out.

An order names what to do in `do`; its other fields are the function's keyword arguments. What the
function returns is the answer. A process ends when its standard input ends.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Command = dict[str, Any]
Result = dict[str, Any]


def emit(**fields: object) -> None:
    """Writes one line to the harness."""
    print(json.dumps(fields), flush=True)


async def serve_commands(actions: dict[str, Callable[..., Awaitable[Result]]]) -> None:
    """Carries out orders one after the other until standard input ends."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        emit(**await actions[order.pop("do")](**order))


def serve_commands_between(busy: Callable[[], bool], orders_of: object) -> None:
    """The same for one thread that has its hands full: `busy` returns, with True, when an order is there.

    Orders are methods of `orders_of`. Ends also where `busy` returns False.
    """
    while busy():
        line = sys.stdin.readline()
        if not line:
            return
        order: Command = json.loads(line)
        emit(**getattr(orders_of, order.pop("do"))(**order))
