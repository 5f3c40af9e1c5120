"""Sessions of connected clients: opening, closing, heartbeats, and frames to one of them."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClosingFrame, ServerFrame
from trunkline_runtime.refusals import closing_frame, error_frame

from trunkline_edge.core.connection import Authenticated, Connection, ConnectionState
from trunkline_edge.core.counters import CLIENT_LOST, EdgeCounters
from trunkline_edge.core.effects import Close, Effect, Ping, RejectConnection
from trunkline_edge.core.encoding import add_framing, encode_frame
from trunkline_edge.core.fanout import Fanout
from trunkline_edge.core.heartbeats import HeartbeatSchedule
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.rate_limits import ConnectionRateLimiter
from trunkline_edge.core.read_control import ReadThrottle
from trunkline_edge.core.token_expiry import TokenExpiries
from trunkline_edge.core.uplink import Uplink
from trunkline_edge.dialects.codec import Codec

#: Heartbeats that a client may miss.
MAX_MISSED_HEARTBEATS = 2


class Sessions:
    """The connections of one edge.

    Connections with data to write are added to `dirty`; everything else is appended to `effects`.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.counts = EdgeCounters()
        self.effects: list[Effect] = []
        self.dirty: set[Connection] = set()
        self.connections: dict[int, Connection] = {}
        self.uplink = Uplink(limits.uplink_bytes, limits.link_window)
        self.fanout = Fanout(self.connections, self.counts, self.dirty)
        self.throttle = ReadThrottle(limits, self.effects)
        self.expiries = TokenExpiries(self.connections)
        self.heartbeats = HeartbeatSchedule(limits.heartbeat_s)
        #: Connections that the router has not answered.
        self.opening = 0
        #: Set once the edge stops.
        self.is_draining = False
        self._last_number = 0

    # Opening

    def check_capacity(self) -> None:
        """Raises Refused RESTARTING or OVERLOADED if no further connection is accepted."""
        if self.is_draining:
            raise catalogue.RESTARTING.refused()
        if len(self.connections) >= self.limits.max_connections:
            raise catalogue.OVERLOADED.refused(problem="the edge is at its connection limit")

    def open(
        self,
        codec: Codec,
        opened: ConnectionOpened,
        rollup_ms: int,
        rate_limiter: ConnectionRateLimiter | None = None,
        principal: Authenticated | None = None,
    ) -> Connection:
        """Open a connection and ask the router to accept it, now or on the next link.

        The answer may never come: the handshake's deadline bounds the wait. Raises Refused like
        `check_capacity`.
        """
        self.check_capacity()
        self._last_number += 1
        opened.connection = self._last_number
        connection = Connection(opened, codec, rollup_ms, rate_limiter, principal)
        self.connections[connection.number] = connection
        self.opening += 1
        self.heartbeats.add(connection)
        self.expiries.add(connection)
        if self.uplink.is_up:
            self.uplink.add(len(connection.registration_bytes)).opened.CopyFrom(opened)
        return connection

    def accepted(self, connection: Connection) -> None:
        """Open the session: the router has accepted the connection."""
        if connection.state is ConnectionState.OPENING:
            connection.state = ConnectionState.OPEN
            self.opening -= 1
            self.counts.opened += 1

    # Closing

    def close(self, connection: Connection, reason: Refused) -> None:
        """Close a connection with a `closing` frame and the entry's close code. Idempotent."""
        self.close_with(connection, closing_frame(reason))

    def close_with(self, connection: Connection, closing: ClosingFrame) -> None:
        """Close a connection; `closing` is the last frame it is sent. Idempotent.

        The router counts it no longer, however long its peer takes to answer the close.
        """
        if connection.state is ConnectionState.CLOSING:
            return
        if connection.state is ConnectionState.OPENING:
            self._reject(connection, closing)
        else:
            self.send(connection, ServerFrame(closing=closing))
            self.mark_cursor(connection)
            self.effects.append(Close(connection, closing))
        # Its topics move on without it.
        connection.resume_cursor = None
        self._end(connection, closing.reason)
        self._report_closed(connection)
        self.throttle.closing(connection)

    def _reject(self, connection: Connection, closing: ClosingFrame) -> None:
        self.counts.refused_by[closing.reason] += 1
        data = encode_frame(connection.codec, ServerFrame(closing=closing))
        if data:
            self.counts.deliveries += 1
        self.effects.append(RejectConnection(connection, closing, data))

    def gone(self, connection: Connection, cause: str = CLIENT_LOST) -> None:
        """Remove a connection whose socket is gone, whatever ended it. Idempotent.

        `cause` counts if the client ended it.
        """
        if self.connections.pop(connection.number, None) is None:
            return
        was_closing = connection.state is ConnectionState.CLOSING
        self._end(connection, cause)
        self.dirty.discard(connection)
        self.throttle.forget(connection)
        self.heartbeats.remove(connection)
        if not was_closing:
            self._report_closed(connection)

    def _report_closed(self, connection: Connection) -> None:
        """Report to the router that a connection is gone; the next link does not declare it."""
        if self.uplink.is_up:
            self.uplink.add().closed.connection = connection.number

    def _end(self, connection: Connection, cause: str) -> None:
        if connection.state is ConnectionState.OPENING:
            self.opening -= 1
        elif connection.state is ConnectionState.OPEN:
            self.counts.count_closed(cause)
        connection.state = ConnectionState.CLOSING
        self.fanout.unsubscribe_all(connection)
        connection.unanswered.clear()
        connection.unanswered_bytes = 0

    def close_expired(self, wall_s: float) -> None:
        """Close the connections whose token has expired by this wall-clock time."""
        for connection in self.expiries.take_expired(wall_s):
            self.close(connection, catalogue.TOKEN_EXPIRED.refused())

    def close_revoked(self, tenant: str, keys: frozenset[str]) -> None:
        """Close the tenant's connections whose token was verified by one of these keys."""
        if not keys:
            return
        for connection in list(self.connections.values()):
            principal = connection.principal
            if principal is not None and principal.key in keys and connection.tenant == tenant:
                self.close(connection, catalogue.TOKEN_REVOKED.refused())

    # Heartbeats

    def heartbeat(self, connections: Iterable[Connection]) -> None:
        """Ping connections; those that missed too many heartbeats are closed."""
        for connection in connections:
            if connection.state is not ConnectionState.OPEN:
                continue
            # A client that is not read from cannot be heard.
            connection.missed_heartbeats = (
                1 if connection.reading_paused else connection.missed_heartbeats + 1
            )
            if connection.missed_heartbeats > MAX_MISSED_HEARTBEATS:
                self.close(connection, catalogue.HEARTBEAT_LOST.refused())
            else:
                self.effects.append(Ping(connection))
                self.send_heartbeat(connection)

    def send_heartbeat(self, connection: Connection) -> None:
        """Send the codec's own heartbeat, if it has one, and retry delivery receipts."""
        if connection.state is not ConnectionState.OPEN:
            return
        self.write(connection, add_framing(connection.codec, connection.codec.heartbeat()))
        if connection.delivery_reporter is not None:
            connection.delivery_reporter.retry_rejected()

    # Frames to one client

    def reject(self, connection: Connection, reason: Refused, frame_id: str) -> None:
        """Answer the frame with this id with `error`; the connection stays open."""
        self.counts.frames_refused += 1
        self.counts.refused_by[reason.entry.code] += 1
        self.send(connection, ServerFrame(error=error_frame(reason, frame_id)))

    def send(self, connection: Connection, frame: ServerFrame) -> None:
        """Send a frame to one client, unless it is being closed."""
        if connection.state is not ConnectionState.CLOSING:
            self.write(connection, encode_frame(connection.codec, frame))

    def write(self, connection: Connection, data: bytes) -> None:
        """Queue encoded frames, or none, behind everything published so far."""
        self.fanout.flush_for(connection)
        if data:
            connection.pending.append(data)
            self.counts.deliveries += 1
        self.dirty.add(connection)

    def mark_cursor(self, connection: Connection) -> None:
        """Append the resume cursor to the data that is pending so far."""
        if connection.pending:
            connection.pending[-1] = connection.with_cursor(connection.pending[-1])

    def report_delivery(self, connection: Connection) -> None:
        """Report the connection's positions to the router if its client does not: it has taken everything."""
        if connection.delivery_reporter is not None:
            connection.delivery_reporter.report(connection.number, self.uplink)
