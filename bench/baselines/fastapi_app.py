"""Baseline on FastAPI: an application with a connection manager, under uvicorn.

`/rooms/{room}` joins the manager's list, `/echo` echoes, `POST /messages` commits one row. The manager
broadcasts with the loop from the FastAPI documentation.
"""

import asyncio
import functools
import socket
import sqlite3
import sys
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from bench.baselines.in_process_publisher import publish
from bench.baselines.sqlite_rows import insert, open_log
from bench.commands import emit, serve_commands


class ConnectionManager:
    """Connection manager of the FastAPI documentation."""

    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        """Accept a connection and add it to the list."""
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        """Remove a connection from the list."""
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        """Send a text to all connections, one after another."""
        for connection in self.active_connections:
            await connection.send_text(message)


class PostedMessage(BaseModel):
    """Body of `POST /messages`."""

    conversation: str
    text: str


def application(manager: ConnectionManager, log: sqlite3.Connection) -> FastAPI:
    """Create the application."""
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def join(websocket: WebSocket, room: str) -> None:
        await manager.connect(websocket)
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            manager.disconnect(websocket)

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect:
            pass

    @app.post("/messages")
    async def post(message: PostedMessage) -> dict[str, int]:
        return {"seq": insert(log, message.conversation, message.text)}

    return app


async def main(folder: Path) -> None:
    """Serve until end of file on stdin."""
    manager = ConnectionManager()
    app = application(manager, open_log(folder))
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    emit(listening=f"127.0.0.1:{listening.getsockname()[1]}")
    await serve_commands({"publish": functools.partial(publish, manager.broadcast)})
    server.should_exit = True
    await serving


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
