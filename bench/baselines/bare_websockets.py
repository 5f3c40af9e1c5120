"""The bare library: `websockets` with its own `broadcast`, echoing on `/echo`."""

import asyncio
import functools

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.baselines.in_process_publisher import publish
from bench.commands import emit, serve_commands

MOST_BUFFERED_BYTES = 1024 * 1024


class Room:
    """All connections that do not echo."""

    def __init__(self) -> None:
        self.members: set[ServerConnection] = set()

    async def handle(self, connection: ServerConnection) -> None:
        """Echoes, or listens until the client is gone."""
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
        """Sends to everybody; waits while the first socket takes no more, as the library does not."""
        broadcast(self.members, text)
        first = next(iter(self.members))
        while first.transport.get_write_buffer_size() > MOST_BUFFERED_BYTES:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.001)


async def main() -> None:
    """Serves until standard input ends."""
    room = Room()
    async with serve(room.handle, "127.0.0.1", 0, backlog=4096) as server:
        emit(listening=f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await serve_commands({"publish": functools.partial(publish, room.broadcast)})


if __name__ == "__main__":
    uvloop.run(main())
