"""Rooms of AnsFlow on Trunkline: its rooms are groups, its monitor is presence of one agent and platform."""

from __future__ import annotations

import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient

if TYPE_CHECKING:
    from tests.support.processes import Process
    from tests.validators.history import History

AGENT = "ansflow"
PLATFORM = f"demo/{AGENT}/web"


def room(name: str) -> str:
    """Return the path of a room."""
    return f"{PLATFORM}/group:{name}"


def member(history: History, user: str, edge: Process, home: str = "", **options: Any) -> RecordingClient:
    """Create a client of AnsFlow that starts in the room `home` or, if that is empty, in none."""
    home = f"group:{home}" if home else ""
    return RecordingClient(history, f"demo/{user}", edge.address, home, agent=AGENT, **options)


async def leave(client: RecordingClient, name: str) -> None:
    """Leave a room."""
    await client.send({"type": "unsubscribe", "id": f"u-{name}", "conversation": conversation(name)})
    await client.next("unsubscribed", id=f"u-{name}")


def conversation(name: str) -> dict[str, str]:
    """Return a room's conversation as in frames."""
    return {"kind": "group", "id": name}


def reset_connection(client: RecordingClient) -> None:
    """Reset the connection by TCP RST, like a client that is killed while data is in transit to it."""
    assert client._ws is not None
    sock = client._ws.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.abort()


async def texts_received(client: RecordingClient) -> list[str]:
    """Return the texts of unread messages, after a round trip that flushes everything in transit."""
    fence = f"fence-{client.session}-{len(client.history.events)}"
    await client.send({"type": "unsubscribe", "id": fence, "conversation": conversation("no-such-room")})
    await client.next("error", id=fence)
    texts = [frame["parts"][0]["text"] for frame in client.inbox if frame["type"] == "message"]
    client.inbox.clear()
    return texts


def health(edge: Process) -> dict[str, Any]:
    """Return the edge's health page."""
    with urlopen(f"http://{edge.address}/healthz", timeout=patient(10)) as response:
        found: dict[str, Any] = json.load(response)
    return found


def closed_by(edge: Process) -> dict[str, int]:
    """Return the number of closed connections by cause, from the metrics."""
    with urlopen(f"http://{edge.address}/metrics", timeout=patient(10)) as response:
        text = response.read().decode()
    found = re.findall(
        r'^trunkline_edge_connections_closed_total\{cause="(\w+)"\} (\S+)$', text, re.MULTILINE
    )
    return {cause: int(float(value)) for cause, value in found}
