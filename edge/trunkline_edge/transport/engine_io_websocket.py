"""Engine.IO sessions on a WebSocket: from the start, or taken over from long polling."""

from __future__ import annotations

import asyncio
import secrets

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from websockets.protocol import OPEN

from trunkline_edge.core.framing import websocket_frame
from trunkline_edge.dialects.dialect import ConnectPlan, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.transport import engine_io_packets as packets
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.engine_io_sessions import EngineIoSession, SessionRequest
from trunkline_edge.transport.websocket import WebSocketTransport

_PROBE = b"probe"


class EngineIoWebSocket(WebSocketTransport):
    """A WebSocket whose messages are Engine.IO's packets.

    Data of the core is packets that end with separators. Nothing of it is sent before the client's first
    message; see PollingSession.
    """

    __slots__ = ("_has_probed", "_held", "_is_open", "_is_released", "_session")

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(handler, transport)
        #: Data that waits for the client's first message.
        self._held = b""
        #: The packet `open` was written, by this transport or the session's first one.
        self._is_open = False
        #: The client has sent its first message.
        self._is_released = False
        self._has_probed = False
        #: The session to take over; None if the client began with this WebSocket, and once it is.
        self._session: EngineIoSession | None = None

    # Handshake

    def _find_route(self, path: str) -> RouteMatch | None:
        return self._handler.registry.engine_io(path)

    def _connect(self, route: RouteMatch, query: str, headers: dict[str, str]) -> None:
        try:
            request = SessionRequest(headers, read_query(query), self.source)
            packets.check_version(request.query)
            if not request.sid:
                super()._connect(route, query, headers)
                return
            self._session = self._handler.engine_io.find(request)
        except Refused as reason:
            self.reject(reason)
            return
        self._protocol.max_message_size = self._handler.settings.large_frame_bytes
        # Packets are read now, though there is no connection.
        self._first = _unused
        self._handler.budget.await_first_message(self.transport)
        self.transport.write(self._take_response())
        self.resume_reading()

    def reject(self, reason: Refused) -> None:
        """See ClientTransport. A session that was not taken over goes on without this WebSocket."""
        if self._response is not None or self._session is None:
            super().reject(reason)
        else:
            self.close(reason.entry.close_code, reason.entry.code)
            self._leave()

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.pause_polling(is_paused=False)
        super()._leave()

    # Reading

    def _read_message(self, payload: bytes, binary: bool) -> None:
        if self._session is not None:
            self._read_probe(self._session, b"" if binary else payload)
            return
        connection = self.connection
        if connection is None:
            return
        client_frames, now = self._handler.core.client_frames, self._loop.time()
        kind = payload[:1]
        if binary or kind == packets.MESSAGE:
            self._release()
            client_frames.received(connection, payload, binary, now)
            return
        client_frames.charge(connection, len(payload), now)
        if kind == packets.CLOSE:
            self._handler.core.sessions.close(connection, catalogue.DISCONNECTED.refused())

    def _read_probe(self, session: EngineIoSession, packet: bytes) -> None:
        """Read what precedes the change of a session's transport: a probe, and the request for it."""
        if packet == packets.PING + _PROBE:
            self._has_probed = True
            self.transport.write(websocket_frame(packets.PONG + _PROBE, binary=False))
            session.pause_polling(is_paused=True)
        elif packet == packets.UPGRADE and self._has_probed and session.may_move:
            self._take_over(session)
        else:
            self.reject(catalogue.INVALID_ADDRESS.refused(problem="the session cannot be upgraded now"))

    def _take_over(self, session: EngineIoSession) -> None:
        connection = session.connection
        assert connection is not None
        self._session = self._first = None
        self._has_written = self._is_open = True
        self._is_released = session.is_released
        self._codec = connection.codec
        self._protocol.max_message_size = session.max_bytes
        data = session.take_outgoing()
        session.hand_over()
        self._answered()
        self._handler.budget.serve_client(self.transport)
        self.connection = connection
        self._handler.move(connection, self)
        if connection.reading_paused:
            self.pause_reading()
        if data:
            self.write(data)
        if not self.buffered:
            self._handler.core.backpressure.caught_up(connection)

    # Writing

    @property
    def buffered(self) -> int:
        """See ClientTransport."""
        return len(self._held) + super().buffered

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if not self._is_open:
            self._is_open = True
            opening = packets.open_packet(secrets.token_urlsafe(24), self._handler.settings, upgrades=False)
            super().write(websocket_frame(opening, binary=False))
        if data and not self._is_released:
            self._held += data
            if self.connection is not None:
                self._handler.core.backpressure.write_buffered(self.connection)
        elif data:
            super().write(packets.websocket_frames(data))

    def _release(self) -> None:
        if self._is_released:
            return
        self._is_released = True
        held, self._held = self._held, b""
        if held:
            super().write(packets.websocket_frames(held))
        if self.connection is not None and not self.buffered:
            self._handler.core.backpressure.caught_up(self.connection)

    def resume_writing(self) -> None:
        """Note that the client has taken everything that it may be sent."""
        if not self._held:
            super().resume_writing()

    def ping(self) -> None:
        """See ClientTransport: the client must answer."""
        if self._protocol.state is OPEN:
            super().write(websocket_frame(packets.PING, binary=False))


def _unused(payload: bytes, binary: bool) -> ConnectPlan:
    """Stands for the reader of a first message."""
    raise NotImplementedError
