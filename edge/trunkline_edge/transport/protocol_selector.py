"""Protocol selection on the listening port, which serves WebSockets, event streams and HTTP alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

from trunkline.v1 import catalogue

from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.event_stream import EventStreamTransport
from trunkline_edge.transport.websocket import WebSocketTransport

MAX_HEAD_BYTES = 16 * 1024

#: Unsent bytes that the kernel may buffer for one client.
UNSENT_BYTES = 128 * 1024


class ProtocolSelector(asyncio.Protocol):
    """Reads the head of a connection's first request and hands the transport over to its protocol.

    A head must be complete within the handshake's time and 16 KiB.
    """

    __slots__ = ("_handler", "_head", "_http", "_timer", "_transport")

    def __init__(self, handler: ConnectionHandler, http: Callable[[], asyncio.Protocol]) -> None:
        self._handler = handler
        self._http = http
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline for the head."""
        self._transport = cast("asyncio.Transport", transport)
        _tune(self._transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._handler.settings.handshake_timeout_s, self._time_out)

    def data_received(self, data: bytes) -> None:
        """Collect the head; once it is complete, hand over."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) <= MAX_HEAD_BYTES:
            return
        if end < 0 or end > MAX_HEAD_BYTES:
            self._reject("431 Request Header Fields Too Large", "The request's head is too large")
            return
        self._stop_timer()
        assert self._transport is not None
        if not _wants_websocket(self._head[:end]):
            route = self._handler.registry.stream(_path(self._head))
            if route is None:
                self._hand_over(self._http())
            else:
                self._hand_over(EventStreamTransport(self._handler, self._transport, route), made=False)
        elif self._handler.takes_handshakes:
            websocket = WebSocketTransport(self._handler, self._transport)
            self._handler.begin_handshake(websocket)
            self._hand_over(websocket, made=False)
        else:
            self._reject(
                "503 Service Unavailable", catalogue.OVERLOADED.sentence(problem="too many handshakes")
            )

    def _hand_over(self, protocol: asyncio.Protocol, made: bool = True) -> None:
        assert self._transport is not None
        self._transport.set_protocol(protocol)
        if made:
            protocol.connection_made(self._transport)
        protocol.data_received(self._head)
        self._head = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline: the client left before its head was complete."""
        self._stop_timer()

    def _time_out(self) -> None:
        limit = self._handler.settings.handshake_timeout_s
        self._reject("408 Request Timeout", catalogue.HANDSHAKE_TIMEOUT.sentence(limit_s=f"{limit:g}"))

    def _reject(self, status: str, text: str) -> None:
        self._stop_timer()
        body = f"{text}\n".encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        assert self._transport is not None
        self._transport.write(head.encode() + body)
        self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _path(head: bytes) -> str:
    """Return the path of the request line without its query; empty if the line is malformed."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    return words[1].partition(b"?")[0].decode("latin-1") if len(words) == 3 else ""


def _wants_websocket(head: bytes) -> bool:
    for header in head.split(b"\r\n")[1:]:
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"upgrade":
            return value.strip().lower() == b"websocket"
    return False


def _tune(transport: asyncio.Transport) -> None:
    """Send small frames at once, and let a slow client fill the edge's bounded buffer, not the kernel's."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
