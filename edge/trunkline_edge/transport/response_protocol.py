"""Shared base of the protocols that answer one HTTP request of a client, perhaps by a stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from trunkline_edge.auth.cors import cors_headers
from trunkline_edge.core.counters import CLIENT_BROKE_PROTOCOL
from trunkline_edge.transport.client_protocol import ClientProtocol
from trunkline_edge.transport.connection_handler import ConnectionHandler

#: Bytes that a client may send behind its request; they are ignored.
MAX_SURPLUS_BYTES = 64 * 1024


class ResponseProtocol(ClientProtocol):
    """Writes one response, which ends the connection."""

    __slots__ = ("_is_head", "_surplus_bytes", "_tenant", "_wrote_head")

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(handler, transport)
        #: The request is for headers alone.
        self._is_head = False
        self._wrote_head = False
        self._surplus_bytes = 0
        #: The tenant that the request is for; empty until known.
        self._tenant = ""
        _limit_silence(transport, 2 * handler.settings.heartbeat_s)

    def _ignore(self, data: bytes) -> None:
        """Drop what the client sends behind its request; too much of it ends the connection."""
        self._surplus_bytes += len(data)
        if self._surplus_bytes > MAX_SURPLUS_BYTES:
            self._gone(CLIENT_BROKE_PROTOCOL)
            self.transport.abort()

    def ping(self) -> None:
        """See ClientTransport: a client that takes what is written, or waits for it, is alive."""
        if self.connection is not None and not self.buffered:
            self.connection.missed_heartbeats = 0

    def _write_response(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Write a whole response; the caller then closes."""
        if status == HTTPStatus.NO_CONTENT:
            body = b""
        else:
            headers = {**headers, "content-length": str(len(body))}
        self._begin_response()
        self.transport.write(head_bytes(status, headers) + (b"" if self._is_head else body))

    def _begin_response(self) -> None:
        self._wrote_head = True
        self._answered()

    def _cors_headers(self) -> dict[str, str]:
        """Return the headers that let a web page read the response."""
        return cors_headers(self._handler.tenants.policy(self._tenant), self.source)


def head_bytes(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of a response, after which the connection ends."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *header_lines(headers)]
    return "\r\n".join([*lines, "connection: close", "\r\n"]).encode("latin-1")


def header_lines(headers: Mapping[str, str]) -> Iterable[str]:
    """The headers as lines of a head."""
    return (f"{name}: {value}" for name, value in headers.items())


def _limit_silence(transport: asyncio.Transport, limit_s: int) -> None:
    """Have the kernel drop a peer that acknowledges nothing for this long, such as one that has vanished."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_s * 1000)
