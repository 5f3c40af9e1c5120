"""Bytes that are no request of the protocol that a port serves, by name."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.patience import patient

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

#: Connections of each kind that `attack` opens.
TIMES = 8
#: Time to read an answer, of which some have none.
READ_S = 0.3

_RANDOM = random.Random(13)
_TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _RANDOM.randbytes(50)
_SOCKET = (
    b"GET /v1/connect?tenant=demo&agent=echo&platform=web&conversation=person:a&user=a HTTP/1.1\r\n"
    b"Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
)
_KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
_GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
_POST = b"POST /v1/broadcast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

HTTP_BYTES = {
    "garbage": _RANDOM.randbytes(100) + b"\r\n\r\n",
    "TLS": _TLS_HELLO,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a head": _GET,
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "folded header": _GET + b"X: a\r\n b\r\n\r\n",
    "long head": _GET + b"Cookie: " + b"a" * 30_000 + b"\r\n\r\n",
    "upgrade to HTTP/2": _GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
    "negative length": _POST + b"Content-Length: -3\r\n\r\n",
    "bad chunk": _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": _POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "half a body": _POST + b"Content-Length: 1000\r\n\r\n{",
    "garbage behind a request": _GET + b"\r\n\x00\x01\x02\r\n\r\n",
    "no key": _SOCKET + b"\r\n",
    "no key, and garbage": _SOCKET + b"\r\n" + _RANDOM.randbytes(100),
    "two keys": _SOCKET + _KEY * 2 + b"\r\n",
    "bad version": _SOCKET + _KEY.replace(b"13", b"99") + b"\r\n",
    "target that is not ASCII": _SOCKET.replace(b"user=a", b"user=\xff\xc3") + _KEY + b"\r\n",
    "header without colon": _SOCKET + _KEY + b"nothing\r\n\r\n",
    "control characters": _SOCKET + _KEY + b"Sec-WebSocket-Protocol: a,\x01,b\r\n\r\n",
    "bad extension": _SOCKET + _KEY + b"Sec-WebSocket-Extensions: ;;=;\r\n\r\n",
    "garbage as frames": _SOCKET + _KEY + b"\r\n" + _RANDOM.randbytes(200),
    "unmasked frame": _SOCKET + _KEY + b"\r\n\x81\x02{}",
    "bad UTF-8": _SOCKET + _KEY + b"\r\n\x81\x82\0\0\0\0\xff\xfe",
    "bad close code": _SOCKET + _KEY + b"\r\n\x88\x82\0\0\0\0\x00\x05",
}


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _call(rpc: str, data: bytes, *, ends: bool = True) -> bytes:
    """An HTTP/2 connection with one gRPC call, in literal headers."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{rpc}",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return _PREFACE + _frame(1, 4, 1, block) + _frame(0, int(ends), 1, data)


def _message(data: bytes, *, compressed: bool = False) -> bytes:
    return bytes([compressed]) + struct.pack(">I", len(data)) + data


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
_BROADCAST = "trunkline.v1.BroadcastService/Broadcast"
_BROKEN = _message(b"\xff\xff\xff\xff")

GRPC_BYTES = {
    "garbage": _RANDOM.randbytes(300),
    "TLS": _TLS_HELLO,
    "HTTP/1.1": _GET + b"\r\n",
    "half a preface": _PREFACE[:10],
    "garbage behind the preface": _PREFACE + _RANDOM.randbytes(200),
    "frame too large": _PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "bad HPACK": _PREFACE + _frame(1, 5, 1, b"\xff\xff\xff\xff\xff"),
    "unknown method": _call("x.Y/Z", _message(b"")),
    "no message": _call(_BROADCAST, b""),
    "half a message": _call(_BROADCAST, b"\0\0\0\0\xffabc"),
    "half a message, left open": _call(_BROADCAST, b"\0\0\0\0\xffabc", ends=False),
    "message too large": _call(_BROADCAST, b"\0\x7f\xff\xff\xffabc"),
    "message that is not compressed": _call(_BROADCAST, _message(b"abc", compressed=True)),
    "reset stream": _call("trunkline.v1.EdgeService/Link", b"", ends=False) + _frame(3, 0, 1, b"\0\0\0\x08"),
} | {
    f"unreadable {rpc}": _call(rpc, _BROKEN)
    for rpc in (
        _BROADCAST,
        "trunkline.v1.BroadcastService/BroadcastMany",
        "trunkline.v1.EdgeService/Link",
        "trunkline.v1.AgentService/Attach",
        "trunkline.v1.TenantService/CreateTenant",
        "trunkline.v1.PresenceService/WatchConnections",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )
}


async def attack(address: str, kinds: Mapping[str, bytes], tls: ssl.SSLContext | None = None) -> int:
    """Send each kind over TIMES connections, and end every other one by a reset. Return their number."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(patient(30)):
        await asyncio.gather(
            *(_send(host, int(port), data, tls, reset=n % 2) for data in kinds.values() for n in range(TIMES))
        )
    # Two passes of the loop, for each transport to report its close.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return len(kinds) * TIMES


async def _send(host: str, port: int, data: bytes, tls: ssl.SSLContext | None, *, reset: int) -> None:
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    except OSError:
        return
    try:
        writer.write(data)
        async with asyncio.timeout(READ_S):
            while await reader.read(1 << 16):
                pass
    except (OSError, TimeoutError):
        pass
    finally:
        if reset:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(READ_S):
                await writer.wait_closed()
        writer.transport.abort()
