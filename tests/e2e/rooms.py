"""What AnsFlow calls rooms, users and a monitor: groups, users and presence of one agent and platform.

The numbers in the names of tests are those of the behaviours that its clients and operators must have.
"""

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
    """The address of a room."""
    return f"{PLATFORM}/group:{name}"


def member(history: History, user: str, edge: Process, home: str = "", **options: Any) -> RecordingClient:
    """A client of AnsFlow, in a room from the start where one is named."""
    home = f"group:{home}" if home else ""
    return RecordingClient(history, f"demo/{user}", edge.address, home, agent=AGENT, **options)


async def leave(chatter: RecordingClient, name: str) -> None:
    """Leave a room."""
    await chatter.send({"type": "unsubscribe", "id": f"u-{name}", "conversation": conversation(name)})
    await chatter.next("unsubscribed", id=f"u-{name}")


def conversation(name: str) -> dict[str, str]:
    """A room as frames name it."""
    return {"kind": "group", "id": name}


def reset_connection(chatter: RecordingClient) -> None:
    """Cut the connection by a TCP RST, as a client does that is killed with data on its way to it."""
    assert chatter._ws is not None
    sock = chatter._ws.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    chatter.break_off()


async def texts_received(chatter: RecordingClient) -> list[str]:
    """The texts that it was told and that were not asked for yet; all there is on its way has come."""
    fence = f"fence-{chatter.life}-{len(chatter.history.events)}"
    await chatter.send({"type": "unsubscribe", "id": fence, "conversation": conversation("no-such-room")})
    await chatter.next("error", id=fence)
    texts = [frame["parts"][0]["text"] for frame in chatter.inbox if frame["type"] == "message"]
    chatter.inbox.clear()
    return texts


def health(edge: Process) -> dict[str, Any]:
    """The edge's health page."""
    with urlopen(f"http://{edge.address}/healthz", timeout=patient(10)) as response:
        found: dict[str, Any] = json.load(response)
    return found


def closed_by(edge: Process) -> dict[str, int]:
    """Connections that ended, by cause, as Prometheus is told."""
    with urlopen(f"http://{edge.address}/metrics", timeout=patient(10)) as response:
        text = response.read().decode()
    found = re.findall(
        r'^trunkline_edge_connections_closed_total\{cause="(\w+)"\} (\S+)$', text, re.MULTILINE
    )
    return {cause: int(float(value)) for cause, value in found}
