"""Packets of Engine.IO 4 (https://socket.io/docs/v4/engine-io-protocol/).

A packet is its type, one digit, and its content. A payload of long polling is packets with separators between
them; the core writes packets with one behind each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from trunkline.v1 import catalogue

from trunkline_edge.core.framing import websocket_frame
from trunkline_edge.dialects.socket_io import SEPARATOR
from trunkline_edge.settings import EdgeSettings
from trunkline_edge.transport.request_head import malformed

CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = b"1", b"2", b"3", b"4", b"5", b"6"

#: Query parameter with the protocol's version, and the version that is served.
VERSION_PARAMETER, VERSION = "EIO", "4"

#: Packets of one payload from a client. Some clients send what they queued during a request in one payload.
MAX_PACKETS = 16 * 1024

_write = msgspec.json.Encoder().encode


def open_packet(sid: str, settings: EdgeSettings, *, upgrades: bool) -> bytes:
    """The first packet to a client: the name of its session, and the times of pings."""
    interval_ms = settings.heartbeat_s * 1000
    return b"0" + _write(
        {
            "sid": sid,
            "upgrades": ["websocket"] if upgrades else [],
            "pingInterval": interval_ms,
            "pingTimeout": interval_ms,
            "maxPayload": settings.large_frame_bytes,
        }
    )


def check_version(query: Sequence[tuple[str, str]]) -> None:
    """Raises Refused INVALID_ADDRESS for a request of another version of the protocol."""
    if dict(query).get(VERSION_PARAMETER) != VERSION:
        problem = f"Engine.IO {VERSION} is served: send {VERSION_PARAMETER}={VERSION}"
        raise catalogue.INVALID_ADDRESS.refused(problem=problem)


def split_payload(body: bytes) -> list[bytes]:
    """The packets of a payload from a client. Raises Refused for one that is no payload."""
    if body.count(SEPARATOR) >= MAX_PACKETS:
        raise catalogue.INVALID_ARGUMENT.refused(
            field="body", problem=f"has more than {MAX_PACKETS} packets; send fewer at a time"
        )
    try:
        body.decode()
    except UnicodeDecodeError:
        raise malformed("the payload is not UTF-8") from None
    return body.split(SEPARATOR)


def websocket_frames(data: bytes) -> bytes:
    """The packets that the core wrote as WebSocket messages."""
    return b"".join(websocket_frame(packet, binary=False) for packet in packets_of(data))


def packets_of(data: bytes) -> Iterator[bytes]:
    """The packets that the core wrote."""
    return iter(data.split(SEPARATOR)[:-1])
