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
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import CloseCode
from websockets.http11 import Response
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
from trunkline_edge.transport.incoming_frames import IncomingFrames, OtherFrame
from trunkline_edge.transport.lingering_close import end_writing
from trunkline_edge.transport.request_head import RequestHead, decoded_headers
from trunkline_edge.transport.websocket_handshake import accept_handshake

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
    """A WebSocket. The closing handshake, and most of the parsing, are those of `websockets`' sans-I/O core.

    It is read in slices of SLICE_FRAMES, between which other clients are served. Nothing is parsed before the
    handshake is answered, or while the client is over its rate limit: at most one read of the socket is kept
    then, and nothing more is read.
    """

    __slots__ = (
        "_codec",
        "_first",
        "_frames",
        "_frames_before_first",
        "_has_written",
        "_is_problem_reported",
        "_is_slice_scheduled",
        "_is_unread",
        "_loop",
        "_protocol",
        "_response",
        "_route",
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
        self._frames = IncomingFrames(self._protocol)
        #: Bytes were received that are not parsed yet.
        self._is_unread = False
        self._is_slice_scheduled = False
        self._is_problem_reported = False
        #: Response to the handshake, until written.
        self._response: Response | None = None
        self._route: RouteMatch | None = None
        #: Encodes for the client before it has a connection.
        self._codec: Codec | None = None
        #: Reads the message that the client must send before it is connected.
        self._first: Callable[[bytes, bool], ConnectPlan] | None = None
        self._frames_before_first = 0
        #: The response to the handshake was written, with the first data or because a message is awaited.
        self._has_written = False

    # Events of the transport

    def begin(self, request: RequestHead, surplus: bytes) -> None:
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
        self._frames.feed(data)
        self._read_slice()

    def eof_received(self) -> bool:
        """Remove the client, once answered; the transport closes when it has taken what was written."""
        if self._response is not None:
            self._await_answer()
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
        self._frames.clear()
        cause = self._leave_cause()
        problem = self._protocol.parser_exc
        if isinstance(problem, ProtocolError) and not self._is_problem_reported:
            self._is_problem_reported = True
            self._handler.protocol_broken(self.remote_ip, f"WebSocket: {problem}")
        self._gone(cause)

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
        frames, protocol = self._frames, self._protocol
        for _ in range(SLICE_FRAMES):
            if not self._may_parse:
                break
            event = frames.next_event()
            if event is None:
                return
            if isinstance(event, OtherFrame):
                self._read_other(event)
            else:
                self._read_message(*event)
            if protocol.eof_sent:
                if isinstance(protocol.parser_exc, PayloadTooBig):
                    self._reject_too_large()
                return
        self._is_unread = True

    def _read_other(self, frame: OtherFrame) -> None:
        """Charge for a frame that completes no message, as for one, and answer it."""
        connection = self.connection
        if connection is not None:
            client_frames = self._handler.core.client_frames
            if frame.charge_bytes is not None:
                client_frames.charge(connection, frame.charge_bytes, self._loop.time())
            if frame.pong:
                client_frames.answer_ping(connection, frame.pong)
            return
        if frame.charge_bytes is not None:
            self._frames_before_first += 1
        if self._first is not None and self._frames_before_first > MAX_FRAMES_BEFORE_FIRST:
            self.reject(catalogue.INVALID_ADDRESS.refused(problem="too many frames before the first message"))
        elif frame.pong:
            self.transport.write(frame.pong)

    # Handshake

    def _read_handshake(self, request: RequestHead) -> None:
        path, _, query = request.target.decode("ascii").partition("?")
        self._route = self._find_route(path)
        try:
            if self._route is None:
                raise catalogue.NO_SUCH_PATH.refused(path=path)
            self._response = accept_handshake(self._protocol, request, path)
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

    def _find_route(self, path: str) -> RouteMatch | None:
        return self._handler.registry.socket(path)

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
            self._handler.budget.await_first_message(self.transport)
            self.transport.write(self._take_response())
            self.resume_reading()

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport."""
        self._protocol.max_message_size = min(self._protocol.max_message_size or frame_bytes, frame_bytes)

    def _take_response(self) -> bytes:
        """Return the response to the handshake, or nothing if that was written already."""
        response, self._response = self._response, None
        return b"" if response is None else response.serialize()

    # Messages

    def _read_message(self, payload: bytes, binary: bool) -> None:
        if self.connection is not None:
            now = self._loop.time()
            self._handler.core.client_frames.received(self.connection, payload, binary, now)
        elif self._first is not None:
            first, self._first = self._first, None
            self._handler.budget.serve_client(self.transport)
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
                end_writing(self.transport)
        if self._protocol.close_expected():
            self._await_close()


def _extra_headers(reason: Refused) -> Sequence[str]:
    return ("allow: GET",) if reason.entry is catalogue.METHOD_NOT_ALLOWED else ()
