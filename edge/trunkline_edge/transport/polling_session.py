"""Engine.IO sessions by long polling: requests that bring packets, and requests that wait for them."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.refusals import refusal_of

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.counters import CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.dialect import ConnectRequest
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.dialects.socket_io import SEPARATOR
from trunkline_edge.transport import engine_io_packets as packets
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.engine_io_sessions import EngineIoSession, SessionRequest, no_session

#: Packets that are handled before other clients are served.
SLICE_PACKETS = 64
#: Time for the client to fetch the last packets of a session that is closed.
CLOSE_TIMEOUT_S = 5.0


class PollingSession(EngineIoSession):
    """One client's session, until it ends or moves to a WebSocket.

    Packets to the client wait for the next poll. What a poll has fetched counts as buffered until the client
    polls again, which shows that it has arrived. Nothing is sent before the client's first message: by the
    protocol it asks for the confirmation that the core writes first.
    """

    def __init__(self, handler: ConnectionHandler, remote_ip: str, request: SessionRequest) -> None:
        super().__init__(remote_ip, secrets.token_urlsafe(24), request, handler.settings.large_frame_bytes)
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        #: Completes with the response to the handshake, or raises Refused.
        self._opened: asyncio.Future[bytes] = self._loop.create_future()
        #: Packets that no poll has fetched, each with its separator.
        self._outgoing: list[bytes] = []
        self._unfetched_bytes = 0
        #: Bytes in the response to the latest poll.
        self._unconfirmed_bytes = 0
        self._is_ping_due = False
        self._is_polling_paused = False
        #: Waits for packets.
        self._poll: asyncio.Future[bytes] | None = None
        #: Packets from the client that were not handled yet; the request that brought them waits.
        self._incoming: deque[bytes] = deque()
        self._is_slice_scheduled = False
        self._all_read: asyncio.Future[None] | None = None
        self._is_reading_paused = False
        #: No further data is accepted; what is left may be fetched.
        self._is_closed = False

    # Handshake

    def begin(self, route: RouteMatch) -> None:
        """Begin the handshake. Raises Refused OVERLOADED if there are too many."""
        if not self._handler.make_room_for_handshake():
            raise catalogue.OVERLOADED.refused(problem="too many handshakes")
        self._handler.begin_handshake(self)
        self._handler.when_tenants_known(self, lambda: self._connect(route))

    def _connect(self, route: RouteMatch) -> None:
        tenants = self._handler.tenants
        request = self.request
        asked = ConnectRequest(
            route.parameters, request.query, request.headers, None, tenants, self.source.is_local
        )
        try:
            self._handler.connect(self, route.dialect.connect(asked))
        except Refused as reason:
            self.reject(reason)

    async def opened(self) -> bytes:
        """Wait for the response to the handshake. Raises Refused."""
        opened: bytes = await asyncio.shield(self._opened)
        return opened

    def abandon(self) -> None:
        """End the session: its client left during the handshake."""
        self._end(CLIENT_LOST)

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport."""
        self.max_bytes = min(self.max_bytes, frame_bytes)

    def reject(self, reason: Refused) -> None:
        """See ClientTransport."""
        self._handler.end_handshake(self)
        if not self._opened.done():
            self._opened.set_exception(reason)
            # Nobody may wait any longer.
            self._opened.exception()

    def reject_connection(self, codec: Codec, closing: ClosingFrame, data: bytes) -> None:
        """See ClientTransport."""
        self.reject(refusal_of(closing))
        self._end(CLIENT_LOST)

    # Writing

    @property
    def buffered(self) -> int:
        """See ClientTransport."""
        return self._unfetched_bytes + self._unconfirmed_bytes

    @property
    def is_closing(self) -> bool:
        """See ClientTransport."""
        return self._is_closed

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if not self._opened.done():
            self._handler.end_handshake(self)
            self._handler.engine_io.add(self)
            self._opened.set_result(packets.open_packet(self.sid, self._handler.settings, upgrades=True))
        if not data or self._is_closed:
            return
        self._outgoing.append(data)
        self._unfetched_bytes += len(data)
        if self.connection is not None:
            self._handler.core.backpressure.write_buffered(self.connection)
        self._answer_poll()

    def ping(self) -> None:
        """See ClientTransport: the client must answer. Pings that no poll has fetched are one."""
        self._is_ping_due = True
        self._answer_poll()

    async def poll(self) -> bytes:
        """See EngineIoSession."""
        self._confirm()
        self._end_poll()
        poll = self._poll = self._loop.create_future()
        self._answer_poll()
        if self._is_closed and not poll.done():
            self._end(CLIENT_LEFT)
        try:
            payload: bytes = await poll
            return payload
        finally:
            if self._poll is poll:
                self._poll = None

    def _confirm(self) -> None:
        """Note that the response to the latest poll has arrived."""
        self._unconfirmed_bytes = 0
        if self.connection is not None and not self._unfetched_bytes:
            self._handler.step(self._handler.core.backpressure.caught_up, self.connection)

    def _end_poll(self) -> None:
        """Answer a waiting poll with nothing."""
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(packets.NOOP)

    def _answer_poll(self) -> None:
        poll = self._poll
        if poll is None or poll.done():
            return
        ping = packets.PING + SEPARATOR if self._is_ping_due else b""
        self._is_ping_due = False
        data = self.take_outgoing() if self.is_released else b""
        self._unconfirmed_bytes = len(data)
        if not ping and not data and self._is_polling_paused:
            poll.set_result(packets.NOOP)
        elif ping or data:
            poll.set_result((ping + data)[: -len(SEPARATOR)])

    def take_outgoing(self) -> bytes:
        """See EngineIoSession."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._unfetched_bytes = 0
        return data

    # Reading

    async def receive(self, payload: bytes) -> None:
        """See EngineIoSession."""
        if self._all_read is not None:
            problem = "another request of the session is not answered yet"
            raise catalogue.INVALID_ARGUMENT.refused(field="sid", problem=problem)
        self._incoming.extend(packets.split_payload(payload))
        all_read = self._all_read = self._loop.create_future()
        self._handler.step(self._read_slice)
        try:
            await all_read
        finally:
            self._all_read = None

    @property
    def may_move(self) -> bool:
        """See EngineIoSession."""
        return self.connection is not None and not self._is_closed and self._all_read is None

    def pause_reading(self) -> None:
        """See ClientTransport."""
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        """See ClientTransport."""
        self._is_reading_paused = False
        self._schedule_slice()

    def _schedule_slice(self) -> None:
        if self._incoming and not self._is_slice_scheduled:
            self._is_slice_scheduled = True
            self._loop.call_soon(self._read_next_slice)

    def _read_next_slice(self) -> None:
        self._is_slice_scheduled = False
        self._handler.step(self._read_slice)

    def _read_slice(self) -> None:
        connection = self.connection
        for _ in range(SLICE_PACKETS):
            if connection is None or connection.state is not ConnectionState.OPEN:
                self._incoming.clear()
            if not self._incoming or self._is_reading_paused:
                break
            assert connection is not None
            if connection.reading_paused and self._handler.core.throttle.is_throttled(connection):
                break
            self._read_packet(connection, self._incoming.popleft())
        else:
            self._schedule_slice()
        if not self._incoming and self._all_read is not None and not self._all_read.done():
            self._all_read.set_result(None)

    def _read_packet(self, connection: Connection, packet: bytes) -> None:
        client_frames, now = self._handler.core.client_frames, self._loop.time()
        kind = packet[:1]
        if kind == packets.MESSAGE:
            self._release()
            if len(packet) > self.max_bytes:
                reason = catalogue.FRAME_TOO_LARGE.refused(limit=self.max_bytes)
                self._handler.core.sessions.close(connection, reason)
            else:
                client_frames.received(connection, packet, binary=False, now=now)
            return
        client_frames.charge(connection, len(packet), now)
        if kind == packets.PONG:
            connection.missed_heartbeats = 0
        elif kind == packets.CLOSE:
            self._handler.core.sessions.close(connection, catalogue.DISCONNECTED.refused())

    def _release(self) -> None:
        if not self.is_released:
            self.is_released = True
            self._answer_poll()

    # Ending

    def hand_over(self) -> None:
        """See EngineIoSession."""
        self.connection = None
        self._is_closed = True
        self._handler.engine_io.remove(self)
        self._end_poll()

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport. Code and reason are not sent, except by what was written.

        No packet of type `close` is sent: clients take it for the end, and do not reconnect.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if reason == catalogue.DISCONNECTED.code:
            self._end_poll()
        if self._outgoing and self._poll is not None:
            self._answer_poll()
        if self._outgoing and self.is_released:
            self._loop.call_later(CLOSE_TIMEOUT_S, self._end, CLIENT_LOST)
        else:
            self._end(CLIENT_LEFT)

    def _end(self, cause: str) -> None:
        """Remove session and connection. Idempotent."""
        self._is_closed = True
        self._handler.engine_io.remove(self)
        self._handler.end_handshake(self)
        if self._poll is not None and not self._poll.done():
            self._poll.set_exception(no_session())
            self._poll.exception()
        connection, self.connection = self.connection, None
        if connection is not None:
            self._handler.gone(connection, cause)
        self._handler.step(self._read_slice)

    def pause_polling(self, *, is_paused: bool) -> None:
        """See EngineIoSession."""
        self._is_polling_paused = is_paused
        self._answer_poll()

    def __repr__(self) -> str:
        return f"<PollingSession of {self.connection}, {self.buffered} bytes buffered>"
