"""Baseline for streamed replies: a FastAPI connection manager with rooms, under uvicorn.

Each chunk is a JSON frame with the whole text so far or with the new text only. The replies are generated in
the same process and not stored, which favours the baseline.
"""

import asyncio
import functools
import socket
from collections import defaultdict

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from bench.commands import Result, emit, serve_commands
from bench.loadgen.reply_frames import chunk
from bench.loadgen.reply_pacer import ReplyPacer


class ConnectionManager:
    """Connection manager of the FastAPI documentation, with a list for each room."""

    def __init__(self) -> None:
        self.rooms: dict[str, list[WebSocket]] = defaultdict(list)

    async def connect(self, websocket: WebSocket, room: str) -> None:
        """Accept a connection and add it to the room's list."""
        await websocket.accept()
        self.rooms[room].append(websocket)

    def disconnect(self, websocket: WebSocket, room: str) -> None:
        """Remove a connection from the list."""
        self.rooms[room].remove(websocket)

    async def broadcast(self, room: str, message: str) -> None:
        """Send a text to all connections in the room, one after another."""
        for connection in self.rooms[room]:
            await connection.send_text(message)


def application(manager: ConnectionManager) -> FastAPI:
    """Create the application."""
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def join(websocket: WebSocket, room: str) -> None:
        await manager.connect(websocket, room)
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            manager.disconnect(websocket, room)

    return app


async def stream(manager: ConnectionManager, persons: int, group: str, seconds: float, whole: bool) -> Result:
    """Stream replies like `bench.loadgen.producer`; `whole` sends the text so far in every chunk."""
    rooms = [*map(str, range(persons)), group]
    pacer = ReplyPacer(persons + 1, seconds)
    async for due in pacer.due_deltas(max_ticks=1):
        for reply, _, text in due:
            content = pacer.script.text(reply) if whole else text
            await manager.broadcast(rooms[reply], chunk(content))
        await asyncio.sleep(0)
    for room in rooms:
        await manager.broadcast(room, chunk("", is_final=True))
    return {**pacer.result(), "refused": {}, "not_ended_once": 0}


async def main() -> None:
    """Serve until end of file on stdin."""
    manager = ConnectionManager()
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(application(manager), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    emit(listening=f"127.0.0.1:{listening.getsockname()[1]}")
    await serve_commands({"stream": functools.partial(stream, manager)})
    server.should_exit = True
    await serving


if __name__ == "__main__":
    uvloop.run(main())
