"""One WebSocket on one TCP connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame, ServerFrame
from trunkline_runtime.refusals import closing_frame, refusal_of
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from trunkline_edge import http_errors
from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.core.counters import CLIENT_BROKE_PROTOCOL, CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.core.encoding import encoded
from trunkline_edge.core.framing import frames_in
from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.dialect import ConnectPlan, ConnectRequest, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.http_errors import ErrorResponse
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_handler import ConnectionHandler

# websockets logs each dirty disconnect; what matters of them is counted.
_quiet = logging.getLogger("trunkline.edge.ws")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: What those are told who do not prove who they are, or may not come in.
_BY_STATUS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class WebSocketTransport(ClientTransport):
    """Speaks WebSocket. Parsing and the closing handshake are those of `websockets`' sans-I/O core."""

    __slots__ = (
        "_codec",
        "_first",
        "_found",
        "_fragment_is_binary",
        "_fragments",
        "_loop",
        "_protocol",
        "_response",
        "_shaking",
        "_waiting",
    )

    def __init__(self, host: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(host, transport)
        self._protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: self._select(offered),
            max_size=host.core.limits.frame_bytes,
            logger=_quiet,
        )
        self._loop = asyncio.get_running_loop()
        self._response: Response | None = None
        self._found: RouteMatch | None = None
        #: Tells the client what it is told before it has a connection.
        self._codec: Codec | None = None
        self._fragments: bytearray | None = None
        self._fragment_is_binary = False
        #: Reads what the client must say before it is connected.
        self._first: Callable[[bytes, bool], ConnectPlan] | None = None
        #: What the client said before it was known whether it may come in; no more than one read brings.
        self._waiting: list[tuple[bytes, bool]] = []
        #: Nothing was written yet but, at most, the response to the handshake.
        self._shaking = True

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        """Bytes came from the client."""
        connection = self.connection
        if connection is not None:
            connection.silent_rounds = 0
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
            elif isinstance(event, Request):
                self._handshake(event)
        if isinstance(protocol.parser_exc, PayloadTooBig):
            self._too_large()
        # What is to be said comes before the protocol's own close frame.
        self._host.settle()
        self._flush()
        if protocol.eof_sent:
            self._leave()

    def eof_received(self) -> bool:
        """The client sends no more; the transport closes once the client has what was written."""
        self._leave()
        self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, by whatever cause."""
        self._stop_waiting()
        self._leave()

    def _leave(self) -> None:
        self._first = None
        self._part(self._how_it_left())

    def _how_it_left(self) -> str:
        if self._protocol.close_rcvd is not None:
            return CLIENT_LEFT
        return CLIENT_LOST if self._protocol.parser_exc is None else CLIENT_BROKE_PROTOCOL

    # Handshake

    def _handshake(self, request: Request) -> None:
        protocol = self._protocol
        path, _, query = request.path.partition("?")
        self._found = self._host.registry.socket(path)
        if self._found is None:
            self._reject(HTTPStatus.NOT_FOUND, "No WebSockets are served at this path\n")
            return
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            protocol.send_response(response)
            self._finish()
            return
        self._response = response
        self._codec = self._found.dialect.rejection_codec
        headers: dict[str, str] = {}
        for name, value in request.headers.raw_items():
            headers.setdefault(name.lower(), value)
        self.asked_by(headers)
        connect = partial(self._connect, self._found, query, headers)
        if self._found.dialect.needs_tenants:
            self._host.when_known(self, connect)
        else:
            connect()

    def _connect(self, found: RouteMatch, query: str, headers: dict[str, str]) -> None:
        try:
            request = ConnectRequest(
                parameters=found.parameters,
                query=read_query(query),
                headers=headers,
                subprotocol=self._protocol.subprotocol,
                tenants=self._host.tenants,
                is_local=self.is_local,
            )
            self._take(found.dialect.connect(request))
        except Refused as reason:
            self.refuse(reason)

    def _select(self, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """The first of the dialect's that the client offers too; none where it offers no known one."""
        assert self._found is not None
        known = self._found.dialect.subprotocols
        return next((Subprotocol(name) for name in known if name in offered), None)

    def _take(self, wish: ConnectPlan) -> None:
        """It is known how the client wants to be connected, or that it must say more first."""
        self._codec = wish.codec
        if wish.large_frames:
            self._protocol.max_message_size = self._host.settings.large_frame_bytes
        self._first = wish.read_first
        if self._first is None:
            self._host.open(self, wish)
        else:
            self.transport.write(self.accept())

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport."""
        self._protocol.max_message_size = min(self._protocol.max_message_size or frame_bytes, frame_bytes)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self.transport.resume_reading()
            for payload, binary in waiting:
                self._message(payload, binary)

    def _reject(self, status: HTTPStatus, text: str) -> None:
        self._protocol.send_response(self._protocol.reject(status, text))
        self._finish()

    def accept(self) -> bytes:
        """The response to the handshake, if it was held back until now."""
        if self._response is None:
            return b""
        response, self._response = self._response, None
        self._protocol.send_response(response)
        return b"".join(self._protocol.data_to_send())

    # Frames

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            binary = opcode is Opcode.BINARY
            if frame.fin:
                self._message(bytes(frame.data), binary)
            else:
                self._fragments, self._fragment_is_binary = bytearray(frame.data), binary
        elif opcode is Opcode.CONT and self._fragments is not None:
            self._fragments += frame.data
            if frame.fin:
                payload, self._fragments = bytes(self._fragments), None
                self._message(payload, self._fragment_is_binary)

    def _message(self, payload: bytes, binary: bool) -> None:
        if self.connection is not None:
            self._host.core.received(self.connection, payload, binary, self._loop.time())
        elif self._first is not None:
            first, self._first = self._first, None
            try:
                self._take(first(payload, binary))
            except FrameRefused as refused:
                self.refuse(catalogue.INVALID_ADDRESS.refused(problem=str(refused)))
            except Refused as reason:
                self.refuse(reason)
        elif self._shaking:
            # It is being looked at; nothing more is read until it is let in, or refused.
            self._waiting.append((payload, binary))
            self.transport.pause_reading()

    # Writing and closing

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if self._shaking:
            self._shaking = False
            self._host.handshakes.pop(self, None)
            data = self.accept() + data
        if data:
            self.transport.write(data)

    def _too_large(self) -> None:
        """A frame is over the limit: say so, before the close that the protocol has begun."""
        reason = catalogue.FRAME_TOO_LARGE.refused(limit=self._protocol.max_message_size)
        if self._first is not None:
            self.refuse(reason)
        elif self.connection is not None and self.connection.state is ConnectionState.OPEN:
            self._host.core.close(self.connection, reason)

    def refuse(self, reason: Refused) -> None:
        """See ClientTransport: 101, the last frame and the close, unless the dialect refuses by status."""
        assert self._codec is not None
        if self._waiting:
            self._waiting.clear()
            self.transport.resume_reading()
        closing = closing_frame(reason)
        if self.refuse_by_http(self._codec, closing):
            return
        self.write(encoded(self._codec, ServerFrame(closing=closing)))
        self.close(self._codec.close_code(closing), closing.reason)

    def refuse_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        """See ClientTransport."""
        refusal = refusal_of(closing)
        entry = refusal.entry
        by_status = codec.rejects_unauthorized_by_http and entry.http_status in _BY_STATUS
        if self._response is None or not (codec.rejects_by_http or by_status):
            return False
        self._response = None
        self._shaking = False
        self._host.handshakes.pop(self, None)
        if codec.rejects_by_http:
            status = HTTPStatus(entry.http_status or HTTPStatus.SERVICE_UNAVAILABLE)
            self._reject(status, f"{closing.message}\n")
        else:
            self._refuse_by(http_errors.error_response(refusal))
        self._flush()
        return True

    def _refuse_by(self, rendered: ErrorResponse) -> None:
        """Answer the handshake by a status, as HTTP/JSON does."""
        response = self._protocol.reject(HTTPStatus(rendered.status), "")
        response.body = rendered.body
        del response.headers["Content-Length"], response.headers["Content-Type"]
        for name, value in rendered.headers.items():
            response.headers[name.title()] = value
        response.headers["Content-Type"] = http_errors.JSON
        response.headers["Content-Length"] = str(len(rendered.body))
        self._protocol.send_response(response)
        self._finish()

    def ping(self) -> None:
        """See ClientTransport: it is to answer."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport: begin the closing handshake."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason[:120])
        self._flush()
        self._finish()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                # The empty string stands for the end of the stream. Closing while the client still
                # sends would reset the TCP connection, and what was said last would be lost.
                self.transport.write_eof()
        if self._protocol.close_expected():
            self._finish()

    def frames_in(self, data: bytes) -> int:
        """See ClientTransport."""
        return frames_in(data)
