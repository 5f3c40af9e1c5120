"""WebSocket transport of one client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.refusals import refusal_of
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from trunkline_edge import http_errors
from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.core.counters import CLIENT_BROKE_PROTOCOL, CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.dialect import ConnectPlan, ConnectRequest, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.http_errors import ErrorResponse
from trunkline_edge.transport.client_protocol import ClientProtocol
from trunkline_edge.transport.connection_handler import ConnectionHandler

# websockets logs every unclean disconnect; the edge counts them instead.
_quiet = logging.getLogger("trunkline.edge.ws")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: Statuses of clients that failed to authenticate or are not allowed to connect.
_AUTH_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class WebSocketTransport(ClientProtocol):
    """A WebSocket. Parsing and the closing handshake are those of `websockets`' sans-I/O core."""

    __slots__ = (
        "_codec",
        "_first",
        "_fragment_is_binary",
        "_fragments",
        "_has_written",
        "_loop",
        "_protocol",
        "_response",
        "_route",
        "_waiting",
    )

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(handler, transport)
        self._protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: self._select(offered),
            max_size=handler.core.limits.frame_bytes,
            logger=_quiet,
        )
        self._loop = asyncio.get_running_loop()
        self._response: Response | None = None
        self._route: RouteMatch | None = None
        #: Encodes for the client before it has a connection.
        self._codec: Codec | None = None
        self._fragments: bytearray | None = None
        self._fragment_is_binary = False
        #: Reads the frame that the client must send before it is connected.
        self._first: Callable[[bytes, bool], ConnectPlan] | None = None
        #: Frames received before admission, no more than one read brings.
        self._waiting: list[tuple[bytes, bool]] = []
        #: Something beside the response to the handshake was written.
        self._has_written = False

    # Events of the transport

    def data_received(self, data: bytes) -> None:
        """Read bytes from the client."""
        self._handler.step(self._read, data)
        # After the core's frames: this may hold the protocol's own close frame.
        self._flush()
        if self._protocol.eof_sent:
            self._leave()

    def _read(self, data: bytes) -> None:
        connection = self.connection
        if connection is not None:
            connection.missed_heartbeats = 0
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._read_frame(event)
            elif isinstance(event, Request):
                self._read_handshake(event)
        if isinstance(protocol.parser_exc, PayloadTooBig):
            self._reject_too_large()

    def eof_received(self) -> bool:
        """Remove the client; the transport closes once the client has taken what was written."""
        self._leave()
        self._await_close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the client: the TCP connection is gone."""
        self._cancel_close_timer()
        self._leave()

    def _leave(self) -> None:
        self._first = None
        self._gone(self._leave_cause())

    def _leave_cause(self) -> str:
        if self._protocol.close_rcvd is not None:
            return CLIENT_LEFT
        return CLIENT_LOST if self._protocol.parser_exc is None else CLIENT_BROKE_PROTOCOL

    # Handshake

    def _read_handshake(self, request: Request) -> None:
        protocol = self._protocol
        path, _, query = request.path.partition("?")
        self._route = self._handler.registry.socket(path)
        if self._route is None:
            self._respond_text(HTTPStatus.NOT_FOUND, "No WebSockets are served at this path\n")
            return
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            protocol.send_response(response)
            self._await_close()
            return
        self._response = response
        self._codec = self._route.dialect.rejection_codec
        headers = self._read_headers(request.headers.raw_items())
        connect = partial(self._connect, self._route, query, headers)
        if self._route.dialect.needs_tenants:
            self._handler.when_tenants_known(self, connect)
        else:
            connect()

    def _connect(self, route: RouteMatch, query: str, headers: dict[str, str]) -> None:
        try:
            request = ConnectRequest(
                parameters=route.parameters,
                query=read_query(query),
                headers=headers,
                subprotocol=self._protocol.subprotocol,
                tenants=self._handler.tenants,
                is_local=self.source.is_local,
            )
            self._follow(route.dialect.connect(request))
        except Refused as reason:
            self.reject(reason)

    def _select(self, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Return the dialect's first subprotocol that the client offers, too; None if there is none."""
        assert self._route is not None
        known = self._route.dialect.subprotocols
        return next((Subprotocol(name) for name in known if name in offered), None)

    def _follow(self, plan: ConnectPlan) -> None:
        """Connect the client, or accept the handshake and await the frame that it must send first."""
        self._codec = plan.codec
        if plan.large_frames:
            self._protocol.max_message_size = self._handler.settings.large_frame_bytes
        self._first = plan.read_first
        if self._first is None:
            self._handler.connect(self, plan)
        else:
            self.transport.write(self._accept())

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport."""
        self._protocol.max_message_size = min(self._protocol.max_message_size or frame_bytes, frame_bytes)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self.transport.resume_reading()
            for payload, binary in waiting:
                self._read_message(payload, binary)

    def _accept(self) -> bytes:
        """Return the response to the handshake, or nothing if that was written already."""
        if self._response is None:
            return b""
        response, self._response = self._response, None
        self._protocol.send_response(response)
        return b"".join(self._protocol.data_to_send())

    # Frames

    def _read_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            binary = opcode is Opcode.BINARY
            if frame.fin:
                self._read_message(bytes(frame.data), binary)
            else:
                self._fragments, self._fragment_is_binary = bytearray(frame.data), binary
        elif opcode is Opcode.CONT and self._fragments is not None:
            self._fragments += frame.data
            if frame.fin:
                payload, self._fragments = bytes(self._fragments), None
                self._read_message(payload, self._fragment_is_binary)

    def _read_message(self, payload: bytes, binary: bool) -> None:
        if self.connection is not None:
            now = self._loop.time()
            self._handler.core.client_frames.received(self.connection, payload, binary, now)
        elif self._first is not None:
            first, self._first = self._first, None
            try:
                self._follow(first(payload, binary))
            except FrameRefused as refused:
                self.reject(catalogue.INVALID_ADDRESS.refused(problem=str(refused)))
            except Refused as reason:
                self.reject(reason)
        elif not self._has_written:
            # Nothing more is read until the client is admitted or rejected.
            self._waiting.append((payload, binary))
            self.transport.pause_reading()

    # Writing and closing

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if not self._has_written:
            self._has_written = True
            self._handler.end_handshake(self)
            data = self._accept() + data
        if data:
            self.transport.write(data)

    def _reject_too_large(self) -> None:
        """Send the reason ahead of the close that the protocol has begun for an oversize frame."""
        reason = catalogue.FRAME_TOO_LARGE.refused(limit=self._protocol.max_message_size)
        if self._first is not None:
            self.reject(reason)
        elif self.connection is not None and self.connection.state is ConnectionState.OPEN:
            self._handler.core.sessions.close(self.connection, reason)

    def reject(self, reason: Refused) -> None:
        """See ClientTransport: 101, the last frame and the close, unless the dialect rejects by status."""
        assert self._codec is not None
        if self._waiting:
            self._waiting.clear()
            self.transport.resume_reading()
        self._reject_with(self._codec, reason)

    def _reject_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        refusal = refusal_of(closing)
        entry = refusal.entry
        by_status = codec.rejects_unauthorized_by_http and entry.http_status in _AUTH_STATUSES
        if self._response is None or not (codec.rejects_by_http or by_status):
            return False
        self._response = None
        self._has_written = True
        self._handler.end_handshake(self)
        if codec.rejects_by_http:
            status = HTTPStatus(entry.http_status or HTTPStatus.SERVICE_UNAVAILABLE)
            self._respond_text(status, f"{closing.message}\n")
        else:
            self._respond_json(http_errors.error_response(refusal))
        self._flush()
        return True

    def _respond_text(self, status: HTTPStatus, text: str) -> None:
        self._protocol.send_response(self._protocol.reject(status, text))
        self._await_close()

    def _respond_json(self, error: ErrorResponse) -> None:
        """Answer the handshake with the error response of HTTP/JSON."""
        response = self._protocol.reject(HTTPStatus(error.status), "")
        response.body = error.body
        del response.headers["Content-Length"], response.headers["Content-Type"]
        for name, value in error.headers.items():
            response.headers[name.title()] = value
        response.headers["Content-Type"] = http_errors.JSON
        response.headers["Content-Length"] = str(len(error.body))
        self._protocol.send_response(response)
        self._await_close()

    def ping(self) -> None:
        """See ClientTransport: the client must answer."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport: begin the closing handshake."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason[:120])
        self._flush()
        self._await_close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                # Empty data is the end of the stream. To close while the client still sends would reset the
                # TCP connection and lose the last frames.
                self.transport.write_eof()
        if self._protocol.close_expected():
            self._await_close()
