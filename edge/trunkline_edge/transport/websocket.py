"""WebSocket transport of one client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus

import h11
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.refusals import refusal_of
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader, PayloadTooBig, ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
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
from trunkline_edge.transport.fragments import FragmentedMessage, is_utf8
from trunkline_edge.transport.frame_splitter import FramePart, FrameSplitter, InvalidLength
from trunkline_edge.transport.request_head import (
    announces_body,
    decoded_headers,
    header_values,
    malformed,
    tokens,
)

# websockets logs every unclean disconnect; the edge counts them instead.
_quiet = logging.getLogger("trunkline.edge.ws")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: Statuses of clients that failed to authenticate or are not allowed to connect.
_AUTH_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

#: Frames that are parsed before other clients are served.
SLICE_FRAMES = 64
#: Frames that complete no message, before the message that a client must send first.
MAX_FRAMES_BEFORE_FIRST = 100


class WebSocketTransport(ClientProtocol):
    """A WebSocket. Parsing and the closing handshake are those of `websockets`' sans-I/O core.

    It is read in slices of SLICE_FRAMES, between which other clients are served. Nothing is parsed before the
    handshake is answered, or while the client is over its rate limit: at most one read of the socket is kept
    then, and nothing more is read.
    """

    __slots__ = (
        "_codec",
        "_first",
        "_fragments",
        "_frames_before_first",
        "_has_written",
        "_is_parsing_frame",
        "_is_slice_scheduled",
        "_is_unread",
        "_loop",
        "_protocol",
        "_response",
        "_route",
        "_splitter",
    )

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(handler, transport)
        # The request was read already, and this class sends the response.
        self._protocol = ServerProtocol(
            select_subprotocol=lambda _, offered: self._select(offered),
            state=OPEN,
            max_size=handler.core.limits.frame_bytes,
            logger=_quiet,
        )
        self._loop = asyncio.get_running_loop()
        self._splitter = FrameSplitter()
        #: Bytes were received that are not parsed yet.
        self._is_unread = False
        self._is_slice_scheduled = False
        #: The frame of which a part was received is parsed, not dropped.
        self._is_parsing_frame = False
        #: Response to the handshake, until written.
        self._response: Response | None = None
        self._route: RouteMatch | None = None
        #: Encodes for the client before it has a connection.
        self._codec: Codec | None = None
        #: The unfinished message.
        self._fragments: FragmentedMessage | None = None
        #: Reads the message that the client must send before it is connected.
        self._first: Callable[[bytes, bool], ConnectPlan] | None = None
        self._frames_before_first = 0
        #: The response to the handshake was written, with the first data or because a message is awaited.
        self._has_written = False

    # Events of the transport

    def begin(self, request: h11.Request, surplus: bytes) -> None:
        """Read the handshake, behind which the client has sent `surplus` already."""
        self._handler.step(self._read_handshake, request)
        if surplus:
            self.data_received(surplus)

    def data_received(self, data: bytes) -> None:
        """Read bytes from the client."""
        if self._protocol.eof_sent:
            # The client may send for as long as it has not read our close.
            return
        connection = self.connection
        if connection is not None:
            connection.missed_heartbeats = 0
        self._splitter.feed(data)
        self._read_slice()

    def eof_received(self) -> bool:
        """Remove the client, once answered; the transport closes when it has taken what was written."""
        if self._response is not None:
            self.got_eof = True
            return True
        self._leave()
        self._await_close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the client: the TCP connection is gone."""
        super().connection_lost(exc)
        self._leave()

    def _leave(self) -> None:
        self._first = None
        self._is_unread = False
        self._splitter.clear()
        self._gone(self._leave_cause())

    def _leave_cause(self) -> str:
        if self._protocol.close_rcvd is not None:
            return CLIENT_LEFT
        return CLIENT_LOST if self._protocol.parser_exc is None else CLIENT_BROKE_PROTOCOL

    # Reading in slices

    def resume_reading(self) -> None:
        """See ClientTransport. What was received and not parsed comes first."""
        if self._is_unread:
            self._schedule_slice()
        else:
            self.transport.resume_reading()

    def _schedule_slice(self) -> None:
        if not self._is_slice_scheduled:
            self._is_slice_scheduled = True
            self._loop.call_soon(self._read_next_slice)

    def _read_next_slice(self) -> None:
        self._is_slice_scheduled = False
        if self._is_unread:
            self._read_slice()

    def _read_slice(self) -> None:
        """Parse up to SLICE_FRAMES frames; what remains is left for a later call of the loop."""
        was_unread = self._is_unread
        self._is_unread = False
        self._handler.step(self._read_frames)
        # After the core's frames: this may hold the protocol's own close frame.
        self._flush()
        if self._protocol.eof_sent:
            self._is_unread = False
            self._leave()
        elif self._is_unread:
            self.transport.pause_reading()
            if self._may_parse:
                self._schedule_slice()
        elif was_unread and (self.connection is None or not self.connection.reading_paused):
            self.transport.resume_reading()

    @property
    def _may_parse(self) -> bool:
        """Frames are parsed now: the handshake is answered, and the client is within its rate limit."""
        connection = self.connection
        if connection is None:
            return self._first is not None or (self._has_written and not self.is_waiting)
        if connection.state is ConnectionState.OPENING:
            return False
        return not (connection.reading_paused and self._handler.core.throttle.is_throttled(connection))

    def _read_frames(self) -> None:
        splitter, protocol = self._splitter, self._protocol
        try:
            for _ in range(SLICE_FRAMES):
                if not self._may_parse:
                    break
                if protocol.current_size is None and protocol.state is OPEN:
                    message = splitter.next_message(protocol.max_message_size or 0)
                    if message is not None:
                        self._read_whole(*message)
                        if protocol.eof_sent:
                            return
                        continue
                part = splitter.next_part()
                if part is None:
                    return
                self._read_part(part)
                if self._protocol.eof_sent:
                    return
        except InvalidLength:
            self._protocol.fail(CloseCode.PROTOCOL_ERROR, "64-bit length with its top bit set")
            self._protocol.parser_exc = ProtocolError("invalid length")
            return
        self._is_unread = True

    def _read_part(self, part: FramePart) -> None:
        """Parse a frame, or the part of it that was received."""
        protocol = self._protocol
        if part.is_start:
            if not part.completes_message:
                self._charge(part)
            # Once a close was sent, only the client's own matters.
            self._is_parsing_frame = protocol.state is OPEN or part.opcode == Opcode.CLOSE
        if not self._is_parsing_frame:
            return
        if part.opcode == Opcode.CLOSE:
            # A close between the fragments of a message is no error: the message is dropped.
            protocol.current_size = None
        protocol.receive_data(part.data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._read_frame(event)
        if isinstance(protocol.parser_exc, PayloadTooBig):
            self._reject_too_large()

    def _charge(self, part: FramePart) -> None:
        """Charge for a frame that completes no message; those that do are charged as messages."""
        connection = self.connection
        if connection is not None:
            size = len(part.data) if part.is_control else 0
            self._handler.core.client_frames.charge(connection, size, self._loop.time())
            return
        self._frames_before_first += 1
        if self._frames_before_first > MAX_FRAMES_BEFORE_FIRST and self._first is not None:
            self.reject(catalogue.INVALID_ADDRESS.refused(problem="too many frames before the first message"))

    # Handshake

    def _read_handshake(self, request: h11.Request) -> None:
        path, _, query = request.target.decode("ascii").partition("?")
        self._route = self._handler.registry.socket(path)
        try:
            if self._route is None:
                raise catalogue.NO_SUCH_PATH.refused(path=path)
            self._response = self._accept(request, path)
        except Refused as reason:
            self._handler.count_refused(reason, self.transport)
            self._respond(http_errors.error_response(reason), _extra_headers(reason))
            return
        self._codec = self._route.dialect.rejection_codec
        headers = self._read_headers(decoded_headers(request))
        connect = partial(self._connect, self._route, query, headers)
        if self._route.dialect.needs_tenants:
            self._handler.when_tenants_known(self, connect)
        else:
            connect()

    def _accept(self, request: h11.Request, path: str) -> Response:
        """Return the response that accepts the handshake. Raises Refused for an invalid one."""
        if request.method != b"GET":
            raise catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed="GET")
        is_version_13 = header_values(request, b"sec-websocket-version") == [b"13"]
        if b"upgrade" not in tokens(request, b"connection") or not is_version_13:
            raise catalogue.UPGRADE_REQUIRED.refused(path=path)
        if announces_body(request):
            raise malformed("a handshake has no body")
        try:
            headers = Headers(decoded_headers(request))
        except InvalidHeader as error:
            raise malformed(f"the {error.name} header has an invalid value") from None
        # The client may offer other protocols beside.
        del headers["Upgrade"]
        headers["Upgrade"] = "websocket"
        response = self._protocol.accept(Request(path, headers))
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            raise malformed(str(self._protocol.handshake_exc).partition(":")[0])
        return response

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
        """Connect the client, or accept the handshake and await the message that it must send first."""
        self._codec = plan.codec
        if plan.large_frames:
            self._protocol.max_message_size = self._handler.settings.large_frame_bytes
        self._first = plan.read_first
        if self._first is None:
            self._handler.connect(self, plan)
        else:
            self.transport.write(self._take_response())
            self.resume_reading()

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport."""
        self._protocol.max_message_size = min(self._protocol.max_message_size or frame_bytes, frame_bytes)

    def _take_response(self) -> bytes:
        """Return the response to the handshake, or nothing if that was written already."""
        response, self._response = self._response, None
        return b"" if response is None else response.serialize()

    # Frames

    def _read_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            binary = opcode is Opcode.BINARY
            if not frame.fin:
                self._fragments = FragmentedMessage(binary)
                self._add_fragment(self._fragments, frame)
            else:
                self._read_whole(bytes(frame.data), binary)
        elif opcode is Opcode.CONT and self._fragments is not None:
            self._add_fragment(self._fragments, frame)
        elif opcode is Opcode.PING:
            self._answer_ping()

    def _add_fragment(self, message: FragmentedMessage, frame: Frame) -> None:
        if not message.add(frame.data, frame.fin):
            self._fail_utf8()
        elif frame.fin:
            self._fragments = None
            self._read_message(bytes(message.payload), message.binary)

    def _read_whole(self, payload: bytes, binary: bool) -> None:
        if binary or is_utf8(payload):
            self._read_message(payload, binary)
        else:
            self._fail_utf8()

    def _fail_utf8(self) -> None:
        self._protocol.fail(CloseCode.INVALID_DATA, "text is not UTF-8")
        self._protocol.parser_exc = ProtocolError("text is not UTF-8")

    def _answer_ping(self) -> None:
        """Write the pong that the protocol has prepared, through the outbox of the client if it has one."""
        pong = b"".join(self._protocol.data_to_send())
        if self.connection is not None:
            self._handler.core.client_frames.answer_ping(self.connection, pong)
        else:
            self.transport.write(pong)

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

    # Writing and closing

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if not self._has_written:
            self._has_written = True
            self._answered()
            data = self._take_response() + data
            if self._is_unread:
                self._schedule_slice()
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
        self._first = None
        self._reject_with(self._codec, reason)

    def _reject_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        refusal = refusal_of(closing)
        entry = refusal.entry
        by_status = codec.rejects_unauthorized_by_http and entry.http_status in _AUTH_STATUSES
        if self._response is None or not (codec.rejects_by_http or by_status):
            return False
        self._response = None
        self._has_written = True
        if codec.rejects_by_http:
            status = entry.http_status or HTTPStatus.SERVICE_UNAVAILABLE
            self._respond(ErrorResponse(status, {}, f"{closing.message}\n".encode(), http_errors.TEXT))
        else:
            self._respond(http_errors.error_response(refusal))
        return True

    def _respond(self, error: ErrorResponse, headers: Sequence[str] = ()) -> None:
        """Answer the handshake with an HTTP error, and close."""
        self._answered()
        self.transport.write(http_errors.response_bytes(error, headers))
        # Without a close frame: there is no WebSocket.
        self._protocol.fail(CloseCode.ABNORMAL_CLOSURE)
        self._flush()
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
        """Write what the protocol has prepared: close frames, pings, and the end of the stream."""
        for data in self._protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                # Empty data is the end of the stream. To close while the client still sends would reset the
                # TCP connection and lose the last frames.
                self.transport.write_eof()
        if self._protocol.close_expected():
            self._await_close()


def _extra_headers(reason: Refused) -> Sequence[str]:
    return ("allow: GET",) if reason.entry is catalogue.METHOD_NOT_ALLOWED else ()
