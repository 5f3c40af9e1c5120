"""Tasks that keep a client connected to any available edge, while it sends or listens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from tests.e2e.recording_client import RecordingClient

MAX_IN_FLIGHT = 16


async def send_and_reconnect(client: RecordingClient, edges: list[str], stop: asyncio.Event) -> None:
    """Send messages; after a break, resume on any available edge."""
    client.breaks_expected = True
    number = 0
    while not stop.is_set():
        try:
            if client.closed:
                raise ConnectionResetError
            if len(client.unacked) < MAX_IN_FLIGHT:
                number += 1
                await client.say(f"{client.user} says {number}")
            await asyncio.sleep(0.003)
        except (ConnectionClosed, OSError):
            await client.reconnect(edges)


async def listen_and_reconnect(client: RecordingClient, edges: list[str], stop: asyncio.Event) -> None:
    """Listen; after a break, resume on any available edge."""
    client.breaks_expected = True
    while not stop.is_set():
        if client.closed:
            await client.reconnect(edges)
        await asyncio.sleep(0.003)
