"""Frames from clients: rejected, answered here, or forwarded to the router.

A frame over the rate limit is not decoded. A frame with many values costs its sender more messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import (
    AuthFrame,
    ClientFrame,
    DisconnectFrame,
    PingFrame,
    PongFrame,
    ResumeFrame,
    ServerFrame,
    SignalFrame,
)
from trunkline.v1.frames import CLIENT_FRAMES
from trunkline_runtime.free_form import MAX_SIGNAL_BYTES

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.encoding import add_framing
from trunkline_edge.core.sessions import Sessions
from trunkline_edge.core.token_refresh import TokenRefresh
from trunkline_edge.core.upload_frames import UploadFrames
from trunkline_edge.dialects.codec import (
    SMALL_FRAME_BYTES,
    DirectReply,
    FrameRefused,
    SwitchCodec,
    UsesUploads,
)

#: Frames with an id that the router answers.
_REQUESTS = frozenset(kind for kind, rule in CLIENT_FRAMES.items() if rule.is_request)

#: Longest id that a `pong` repeats.
_MAX_PING_ID = 128


class ClientFrameHandler:
    """Handles what clients send. A rejected frame is answered with `error`; the connection stays open."""

    def __init__(self, sessions: Sessions, token_refresh: TokenRefresh) -> None:
        self._sessions = sessions
        self._throttle = sessions.throttle
        self._uplink = sessions.uplink
        self._token_refresh = token_refresh
        self.uploads = UploadFrames(sessions, self)
        #: Requests that were given an id, as they had none.
        self._generated_ids = 0
        #: Frames that the edge handles itself, by kind; all others are forwarded.
        self._handlers: dict[str, Callable[[Connection, Any], None]] = {
            "ping": self._ping,
            "disconnect": self._disconnect,
            "auth": self._auth,
            "resume": self._resume,
        }

    def received(
        self, connection: Connection, payload: bytes, binary: bool = False, now: float = 0.0
    ) -> None:
        """Handle one WebSocket message. It is buffered until the connection is open and not throttled."""
        if connection.state is not ConnectionState.OPEN:
            if connection.state is ConnectionState.OPENING:
                connection.buffered_input.append((payload, binary))
                self._throttle.pause(connection)
            return
        if connection.reading_paused and self._throttle.is_throttled(connection):
            # Read together with the frame over the limit.
            connection.buffered_input.append((payload, binary))
            return
        self._sessions.counts.frames_in += 1
        limiter, codec = connection.rate_limiter, connection.codec
        if limiter is not None and (over_limit := limiter.take(len(payload), now)) is not None:
            self._sessions.reject(connection, over_limit, codec.frame_id(payload, binary))
            self._throttle.throttle(connection, now)
            return
        try:
            decoded = codec.decode(payload, binary)
        except FrameRefused as refused:
            if limiter is not None and refused.values:
                limiter.charge(refused.values, now)
            self._sessions.reject(connection, refused.reason, refused.frame_id)
            return
        if (
            limiter is not None
            and len(payload) > SMALL_FRAME_BYTES
            and (values := codec.count_values(payload, decoded))
        ):
            limiter.charge(values, now)
        if isinstance(decoded, ClientFrame):
            self.handle(connection, decoded)
        else:
            self._handle_codec_result(connection, decoded)

    def charge(self, connection: Connection, size: int, now: float) -> None:
        """Charge for a frame that is no message: a ping, pong or close, or a fragment before the last.

        Over the rate limit it is still handled, as protocols demand, but nothing more is read for a while.
        """
        limiter = connection.rate_limiter
        if connection.state is not ConnectionState.OPEN or limiter is None:
            return
        if limiter.take(size, now) is not None:
            self._throttle.throttle(connection, now)

    def answer_ping(self, connection: Connection, pong: bytes) -> None:
        """Write a pong of the protocol. Like all that a client is sent, it counts towards its backlog."""
        if connection.state is ConnectionState.OPEN:
            self._sessions.write(connection, pong)

    def unthrottle_next(self, now: float) -> None:
        """Handle the buffered input of the next throttled connections, and read from them again."""
        for connection in self._throttle.unthrottle_next(now):
            self.handle_buffered_input(connection, now)

    def handle_buffered_input(self, connection: Connection, now: float) -> None:
        """Handle frames that came before the connection was open, or while it was throttled."""
        buffered, connection.buffered_input = connection.buffered_input, []
        for payload, binary in buffered:
            self.received(connection, payload, binary, now)
        self._throttle.resume(connection)

    def _handle_codec_result(
        self, connection: Connection, decoded: DirectReply | UsesUploads | SwitchCodec | None
    ) -> None:
        """Do what a codec returned instead of a frame; a switch of codecs may carry one."""
        rest: ClientFrame | DirectReply | UsesUploads | None
        if isinstance(decoded, SwitchCodec):
            if decoded.codec != connection.codec:
                self._sessions.fanout.switch_codec(connection, decoded.codec)
            rest = decoded.decoded
        else:
            rest = decoded
        if isinstance(rest, DirectReply):
            self._sessions.write(connection, add_framing(connection.codec, rest.payload))
        elif isinstance(rest, UsesUploads):
            self.uploads.begin(connection, rest)
        elif rest is not None:
            self.handle(connection, rest)

    def handle(self, connection: Connection, frame: ClientFrame) -> None:
        """Handle a frame that is complete."""
        kind = frame.WhichOneof("frame") or ""
        handler = self._handlers.get(kind)
        if handler is None:
            self._forward(connection, kind, frame)
        else:
            handler(connection, getattr(frame, kind))

    def _ping(self, connection: Connection, ping: PingFrame) -> None:
        pong = PongFrame(id=ping.id[:_MAX_PING_ID])
        self._sessions.send(connection, ServerFrame(pong=pong))

    def _disconnect(self, connection: Connection, _: DisconnectFrame) -> None:
        self._sessions.close(connection, catalogue.DISCONNECTED.refused())

    def _auth(self, connection: Connection, auth: AuthFrame) -> None:
        try:
            self._token_refresh.request(connection, auth)
        except Refused as reason:
            self._sessions.reject(connection, reason, auth.id)

    def _resume(self, connection: Connection, _: ResumeFrame) -> None:
        problem = "it can only be the first frame, after connecting with resume=frame"
        reason = catalogue.UNEXPECTED_FRAME.refused(type="resume", problem=problem)
        self._sessions.reject(connection, reason, "")

    def _forward(self, connection: Connection, kind: str, frame: ClientFrame) -> None:
        if kind in _REQUESTS:
            request = getattr(frame, kind)
            if connection.codec.assigns_ids and not request.id:
                self._generated_ids += 1
                request.id = f"{connection.connection_id}-{self._generated_ids}"
            # As the link carries it: some JSON grows fivefold in protobuf.
            size = frame.ByteSize()
            if not self._add_request(connection, kind, request.id, frame, size):
                return
        else:
            size = frame.ByteSize()
            if kind == "signal" and size > MAX_SIGNAL_BYTES and self._is_signal_too_large(connection, frame):
                return
        if not self._uplink.is_up:
            return
        entry = self._uplink.add(size).frame
        entry.connection = connection.number
        entry.frame.CopyFrom(frame)
        if self._uplink.is_full:
            self._throttle.wait_for_uplink(connection)

    def _is_signal_too_large(self, connection: Connection, frame: ClientFrame) -> bool:
        """Reject a signal over the router's limit, so that it does not cross the link."""
        size = frame.signal.ByteSize()
        if size <= MAX_SIGNAL_BYTES:
            return False
        problem = f"is {size} bytes large; at most {MAX_SIGNAL_BYTES} are allowed"
        reason = catalogue.INVALID_ARGUMENT.refused(field=SignalFrame.DESCRIPTOR.name, problem=problem)
        self._sessions.reject(connection, reason, "")
        return True

    def _add_request(
        self, connection: Connection, kind: str, frame_id: str, frame: ClientFrame, size: int
    ) -> bool:
        """Note a request as unanswered. Return False if its id is taken."""
        if frame_id in connection.unanswered:
            first, _ = connection.unanswered[frame_id]
            # The same request again is a retry: one answer serves both.
            if first != frame:
                problem = f"request {frame_id} has not been answered yet"
                reason = catalogue.UNEXPECTED_FRAME.refused(type=kind, problem=problem)
                self._sessions.reject(connection, reason, "")
            return False
        connection.unanswered[frame_id] = (frame, size)
        connection.unanswered_bytes += size
        if not self._throttle.has_room(connection):
            self._throttle.pause(connection)
        return True
