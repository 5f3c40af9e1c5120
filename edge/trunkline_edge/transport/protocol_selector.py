"""Protocol selection on the listening port, which serves WebSockets, event streams and HTTP alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.http_errors import error_response, response_bytes
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.engine_io_websocket import EngineIoWebSocket
from trunkline_edge.transport.event_stream import EventStreamTransport
from trunkline_edge.transport.http_exchange import ExchangeTransport
from trunkline_edge.transport.lingering_close import close_lingering
from trunkline_edge.transport.request_head import HeadReader, RequestHead, RequestParser, malformed, tokens
from trunkline_edge.transport.websocket import WebSocketTransport

#: Unsent bytes that the kernel may buffer for one client.
UNSENT_BYTES = 128 * 1024
#: Chunks of one body. The largest body has fewer unless they are shorter than a kilobyte.
MAX_CHUNKS = 16 * 1024

#: Makes the protocol that serves a request by HTTP, from its parser and the bytes behind its head.
HttpProtocolFactory = Callable[[RequestParser, bytes], asyncio.Protocol]


class ProtocolSelector(asyncio.Protocol):
    """Reads the head of a connection's first request and hands the transport over to its protocol.

    A head must be complete within the handshake's time and 16 KiB. A request that HTTP does not allow, and
    bytes that are none, are answered by an HTTP status at once.
    """

    __slots__ = ("_handler", "_head", "_http", "_is_writing_paused", "_timer", "_transport")

    def __init__(self, handler: ConnectionHandler, http: HttpProtocolFactory) -> None:
        self._handler = handler
        self._http = http
        self._head = HeadReader()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        #: The client has not taken the responses to earlier requests.
        self._is_writing_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline for the head."""
        self._transport = cast("asyncio.Transport", transport)
        _tune(self._transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._handler.settings.handshake_timeout_s, self._time_out)
        if not self._handler.budget.await_head(self._transport):
            self._reject_overload("too many connections")

    def data_received(self, data: bytes) -> None:
        """Collect the head; once it is complete, hand over."""
        try:
            complete = self._head.feed(data)
            if complete is None:
                return
            head, behind = complete
            parser = RequestParser(MAX_CHUNKS, self._handler.settings.path_prefix)
            request = parser.parse_head(head)
        except Refused as reason:
            self._reject(reason)
            return
        self._stop_timer()
        if _wants_websocket(request):
            self._begin_websocket(request, behind)
            return
        path = request.target.partition(b"?")[0].decode("ascii")
        exchange = self._handler.registry.exchange(path)
        if exchange is not None:
            self._handler.budget.serve_client(self._transport)
            served = ExchangeTransport(self._handler, self._transport, exchange, parser)
            self._transport.set_protocol(served)
            served.begin(request, behind)
            return
        route = self._handler.registry.stream(path)
        if route is not None:
            self._handler.budget.serve_client(self._transport)
            stream = EventStreamTransport(self._handler, self._transport, route)
            self._transport.set_protocol(stream)
            stream.begin(request, behind)
        elif not self._handler.budget.serve_http(self._transport):
            self._reject_overload("too many HTTP connections")
        else:
            http = self._http(parser, behind)
            self._transport.set_protocol(http)
            http.connection_made(self._transport)
            if self._is_writing_paused:
                # The transport reports only changes.
                http.pause_writing()

    def _begin_websocket(self, request: RequestHead, behind: bytes) -> None:
        if not self._handler.make_room_for_handshake():
            self._reject_overload("too many handshakes")
            return
        self._handler.budget.serve_client(self._transport)
        make = EngineIoWebSocket if self._is_engine_io(request) else WebSocketTransport
        websocket = make(self._handler, self._transport)
        self._handler.begin_handshake(websocket)
        self._transport.set_protocol(websocket)
        websocket.begin(request, behind)

    def _is_engine_io(self, request: RequestHead) -> bool:
        """Whether a WebSocket is to carry Engine.IO's packets. Its path may serve others."""
        path, _, query = request.target.partition(b"?")
        return b"EIO=" in query and self._handler.registry.engine_io(path.decode("ascii")) is not None

    def pause_writing(self) -> None:
        """Note that the client has not taken what was written; the next response waits until it has."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Note that it has."""
        self._is_writing_paused = False

    def eof_received(self) -> None:
        """Answer a client that ends its side within a head."""
        if not self._head.is_empty:
            self._reject(malformed("the head is incomplete"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline: the client left before its head was complete."""
        self._stop_timer()
        self._handler.budget.closed(self._transport)

    def _time_out(self) -> None:
        if self._head.is_empty:
            # The client has asked for nothing; a response would answer its next request.
            self._transport.close()
            return
        limit = self._handler.settings.handshake_timeout_s
        self._reject(catalogue.HANDSHAKE_TIMEOUT.refused(limit_s=f"{limit:g}"))

    def _reject_overload(self, problem: str) -> None:
        self._reject(catalogue.OVERLOADED.refused(problem=problem), HTTPStatus.SERVICE_UNAVAILABLE)

    def _reject(self, reason: Refused, status: int = 0) -> None:
        self._stop_timer()
        self._handler.count_refused(reason, self._transport)
        self._handler.budget.idle(self._transport)
        error = error_response(reason)
        self._transport.write(response_bytes(error._replace(status=status or error.status)))
        close_lingering(self._transport)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _wants_websocket(request: RequestHead) -> bool:
    """Whether the request asks for a WebSocket, among other protocols; HTTP/1.0 has no upgrades."""
    return request.http_version == b"1.1" and b"websocket" in tokens(request, b"upgrade")


def _tune(transport: asyncio.Transport) -> None:
    """Send small frames at once, and let a slow client fill the edge's bounded buffer, not the kernel's."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
