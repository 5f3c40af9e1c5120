"""Protocol between the harness and its child processes: one JSON object per line.

A command on stdin names a function in `do`; its other fields are the function's keyword arguments. The
returned result goes to stdout. A child exits at end of file on stdin.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Command = dict[str, Any]
Result = dict[str, Any]


def emit(**fields: object) -> None:
    """Write one JSON line to the harness."""
    print(json.dumps(fields), flush=True)


async def serve_commands(actions: dict[str, Callable[..., Awaitable[Result]]]) -> None:
    """Execute commands one after another until end of file on stdin."""
    stdin = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    while line := await stdin.readline():
        command: Command = json.loads(line)
        emit(**await actions[command.pop("do")](**command))


def serve_commands_blocking(actions: dict[str, Callable[..., Result]]) -> None:
    """Execute commands one after another, without an event loop, until end of file on stdin."""
    for line in sys.stdin:
        _execute(line, actions)


def serve_commands_between(work: Callable[[], bool], actions: dict[str, Callable[..., Result]]) -> None:
    """Execute commands in a thread that works between them.

    `work` returns True when a command can be read from stdin, and False to stop.
    """
    while work():
        line = sys.stdin.readline()
        if not line:
            return
        _execute(line, actions)


def _execute(line: str, actions: dict[str, Callable[..., Result]]) -> None:
    command: Command = json.loads(line)
    emit(**actions[command.pop("do")](**command))
