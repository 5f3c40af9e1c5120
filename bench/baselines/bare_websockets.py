"""Baseline on the bare `websockets` library: its own `broadcast`, and an echo on `/echo`."""

import asyncio
import functools

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.baselines.in_process_publisher import publish
from bench.commands import emit, serve_commands

MAX_BUFFERED_BYTES = 1024 * 1024


class Room:
    """All connections except those on `/echo`."""

    def __init__(self) -> None:
        self.members: set[ServerConnection] = set()

    async def handle(self, connection: ServerConnection) -> None:
        """Echo, or stay a member until the client disconnects."""
        if connection.request and connection.request.path == "/echo":
            async for text in connection:
                await connection.send(text)
            return
        self.members.add(connection)
        try:
            await connection.wait_closed()
        finally:
            self.members.discard(connection)

    async def broadcast(self, text: str) -> None:
        """Send to all members; wait while the first socket is full, as the library itself does not."""
        broadcast(self.members, text)
        first = next(iter(self.members))
        while first.transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:  # noqa: ASYNC110 - polled: no event
            await asyncio.sleep(0.001)


async def main() -> None:
    """Serve until end of file on stdin."""
    room = Room()
    async with serve(room.handle, "127.0.0.1", 0, backlog=4096) as server:
        emit(listening=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await serve_commands({"publish": functools.partial(publish, room.broadcast)})


if __name__ == "__main__":
    uvloop.run(main())
