"""Frames from the router for one connection."""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import ConnectionSend
from trunkline.v1.frame_pb2 import HistoryPageFrame, ServerFrame
from trunkline.v1.frames import SERVER_FRAMES
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN

from trunkline_edge.core.client_frames import ClientFrameHandler
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.resume_cursor import ResumeCursor
from trunkline_edge.core.sessions import Sessions
from trunkline_edge.core.token_refresh import TokenRefresh

#: Each ends one of `unanswered`.
_ANSWERS = frozenset(kind for kind, rule in SERVER_FRAMES.items() if rule.is_answer)
#: Size in protobuf of a small value in a Struct.
_VALUE_BYTES = 8
#: Followed by missed entries, and then by a `join`.
_REPLAYS = frozenset(kind for kind, rule in SERVER_FRAMES.items() if rule.starts_replay)


class RouterFrameHandler:
    """Passes frames from the router to their connection, and applies what they mean to the edge."""

    def __init__(
        self, sessions: Sessions, client_frames: ClientFrameHandler, token_refresh: TokenRefresh
    ) -> None:
        self._sessions = sessions
        self._client_frames = client_frames
        self._token_refresh = token_refresh

    def received(self, sent: ConnectionSend, now: float) -> None:
        """Handle a frame for one connection; it is dropped if the connection is closing or gone."""
        sessions, frame = self._sessions, sent.frame
        if sent.topic:
            # Even if the client is gone: later subscribers must not receive the entry again.
            sessions.fanout.advance(sent.topic, frame.ack.position)
        connection = sessions.connections.get(sent.connection)
        if connection is None or connection.state is ConnectionState.CLOSING:
            sessions.counts.dropped += 1
            return
        kind = frame.WhichOneof("frame") or ""
        reporter = connection.delivery_reporter
        if kind == "error" and reporter is not None and reporter.absorb_rejection(frame.error):
            return
        self._apply(connection, kind, frame, now)
        if kind in _REPLAYS:
            connection.snapshots = connection.snapshots or []
        sessions.send(connection, frame)
        if connection.is_replaying and connection.resume_cursor is not None:
            connection.resume_cursor.replay(frame)
            sessions.mark_cursor(connection)
        if kind == "message" and frame.message.state == MESSAGE_STATE_OPEN:
            sessions.fanout.note_snapshot(connection, frame.message)
        if connection.buffered_input and not sessions.throttle.is_throttled(connection):
            self._client_frames.handle_buffered_input(connection, now)

    def _apply(self, connection: Connection, kind: str, frame: ServerFrame, now: float) -> None:
        """Update the edge's own state from a frame for a client."""
        if kind in _ANSWERS:
            self._answered(connection, getattr(frame, kind).id)
        limiter = connection.rate_limiter
        if kind == "history" and limiter and (values := _approximate_values(frame.history)):
            limiter.charge(values, now)
        if kind == "connected":
            self._connected(connection, frame)
        elif kind == "authorized":
            self._token_refresh.accepted(connection, frame.authorized.id)
        elif kind == "error":
            self._sessions.counts.refused_by[frame.error.code] += 1
            self._token_refresh.rejected(connection, frame.error.id)

    def _answered(self, connection: Connection, frame_id: str) -> None:
        if frame_id in connection.unanswered:
            _, size = connection.unanswered.pop(frame_id)
            connection.unanswered_bytes -= size
            self._sessions.throttle.resume(connection)

    def _connected(self, connection: Connection, frame: ServerFrame) -> None:
        """Open the session, and fill in the edge's own limits."""
        connected, limits = frame.connected, self._sessions.limits
        connected.heartbeat_s = limits.heartbeat_s
        connected.limits.frame_bytes = limits.frame_bytes
        connected.limits.unanswered = limits.unanswered
        if connection.rate_limiter is not None:
            tenant = connection.rate_limiter.tenant
            connected.limits.frame_bytes = min(limits.frame_bytes, tenant.frame_bytes)
            connected.limits.messages_per_s = int(tenant.connection_rate.messages_per_s)
            connected.limits.bytes_per_s = int(tenant.connection_rate.bytes_per_s)
        connected.rollup_ms = connection.rollup_ms
        self._sessions.accepted(connection)
        if connection.codec.appends_cursor:
            connection.resume_cursor = ResumeCursor(connected.positions)


def _approximate_values(page: HistoryPageFrame) -> int:
    """Estimate the free-form values in a page: a short request may ask for many, each with its cost."""
    size = sum(
        part.custom.data.ByteSize()
        for message in page.messages
        for part in message.parts
        if part.HasField("custom")
    )
    return size // _VALUE_BYTES
