"""Hostile input of one client: byte strings that cost a server more to handle than a client to send."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from trunkline.v1 import frame_pb2, message_pb2

from bench.loadgen.chat_frames import JSON, PROTO
from bench.loadgen.websocket_frames import (
    BINARY,
    CONTINUATION,
    HEAD_END,
    PING,
    TEXT,
    client_frame,
    upgrade_request,
)

#: Bytes of one frame: close to the largest that fits into 1 MB with the JSON around it.
FRAME_BYTES = 900_000
BODY_BYTES = 12_000_000
PARTS, UNKNOWN_KEYS = 36_000, 70_000
#: Frames without content are sent this many at a time.
SMALL_FRAMES = 4096
DEPTH = 20
#: Connections that one client holds open at the same time, for attacks that send little.
HELD = 200


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes that a client sends over `connections` of its own, repeatedly unless it is `held`."""

    chunk: bytes
    subprotocol: str | None = None
    """Subprotocol of the WebSocket that carries the bytes; None sends them on a bare connection."""
    connections: int = 1
    is_held: bool = False
    """The bytes are sent once, and the connection is kept."""
    reads: bool = True
    """The client reads what the server sends."""


def _json_frame(**fields: object) -> bytes:
    return client_frame(json.dumps(fields, separators=(",", ":")).encode(), TEXT)


def _signal(data: object) -> bytes:
    return _json_frame(type="signal", name="typing", data=data)


def _nested() -> object:
    """Return many small objects, each nested as deeply as frames may be."""
    innermost: object = 0
    for _ in range(DEPTH):
        innermost = {"a": innermost}
    count = FRAME_BYTES // len(json.dumps(innermost, separators=(",", ":")))
    return {"a": [innermost] * count}


def _many_keys() -> dict[str, int]:
    return {f"k{number}": number for number in range(FRAME_BYTES // 15)}


def _many_parts() -> bytes:
    part = {"type": "text", "text": "x"}
    return _json_frame(type="message", id="m", parts=[part] * (FRAME_BYTES // len(json.dumps(part))))


def _many_parts_in_protobuf() -> bytes:
    parts = [message_pb2.Part(text=message_pb2.TextPart(text="x"))] * PARTS
    frame = frame_pb2.ClientFrame(message=frame_pb2.MessageFrame(id="m", parts=parts))
    return client_frame(frame.SerializeToString(), BINARY)


def _keys_in_protobuf() -> bytes:
    frame = frame_pb2.ClientFrame(signal=frame_pb2.SignalFrame(name="typing"))
    frame.signal.data.update(_many_keys())
    return client_frame(frame.SerializeToString(), BINARY)


def _unknown_keys() -> bytes:
    return _json_frame(type="ping", **{f"k{number}": 0 for number in range(UNKNOWN_KEYS)})


def _body(tenant: str) -> bytes:
    """Return a request without valid proof of permission for what its body contains."""
    keys = {f"k{number}": number for number in range(BODY_BYTES // 15)}
    part = {"custom": {"kind": "x", "data": keys}}
    body = json.dumps({"address": {"agent": "a"}, "parts": [part]}, separators=(",", ":")).encode()
    head = f"POST /v1/tenants/{tenant}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + HEAD_END + body


def _fragments() -> bytes:
    """Return a text message in fragments, all of them empty but the first and the last."""
    first, last = client_frame(b'{"type":"ping"', TEXT, fin=False), client_frame(b"}", CONTINUATION)
    return first + client_frame(b"", CONTINUATION, fin=False) * SMALL_FRAMES + last


def _half_head(tenant: str) -> bytes:
    return f"POST /v1/tenants/{tenant}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le".encode()


def _half_body(tenant: str) -> bytes:
    head = f"POST /v1/tenants/{tenant}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100"
    return head.encode() + HEAD_END + b'{"address"'


def _bad_handshake(tenant: str) -> bytes:
    """Return a handshake without a key."""
    request = upgrade_request("127.0.0.1", f"/v1/connect?tenant={tenant}", JSON)
    return request.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Kez")


ATTACKS: dict[str, Callable[[str], Attack]] = {
    "nested data": lambda _: Attack(_signal(_nested()), JSON),
    "data with many keys": lambda _: Attack(_signal(_many_keys()), JSON),
    "many keys, protobuf": lambda _: Attack(_keys_in_protobuf(), PROTO),
    "many parts": lambda _: Attack(_many_parts(), JSON),
    "many parts, protobuf": lambda _: Attack(_many_parts_in_protobuf(), PROTO),
    "unknown keys": lambda _: Attack(_unknown_keys(), JSON),
    "HTTP bodies": lambda tenant: Attack(_body(tenant), connections=4),
    "pings": lambda _: Attack(client_frame(b"", PING) * SMALL_FRAMES, JSON),
    "pings, nothing read": lambda _: Attack(client_frame(b"x" * 125, PING) * SMALL_FRAMES, JSON, reads=False),
    "empty fragments": lambda _: Attack(_fragments(), JSON),
    "requests that do not end": lambda tenant: Attack(_half_body(tenant), connections=HELD, is_held=True),
    "heads that do not end": lambda tenant: Attack(_half_head(tenant), connections=HELD, is_held=True),
    "bad handshakes": lambda tenant: Attack(_bad_handshake(tenant), connections=4),
}
"""Attacks by name; each takes the tenant of the client that attacks."""
