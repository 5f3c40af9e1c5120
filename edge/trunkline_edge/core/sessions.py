"""Clients: what they send, what they are sent, and when they are read from."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Entry, Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, ConnectionSend
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, PongFrame, ServerFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN
from trunkline_runtime.refusals import closing_frame

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.counters import CLIENT_LOST, EdgeCounters
from trunkline_edge.core.encoding import encoded, written
from trunkline_edge.core.fanout import Fanout
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.rate_limits import ConnectionRateLimiter
from trunkline_edge.core.read_control import ReadThrottle
from trunkline_edge.core.resume_cursor import ResumeCursor
from trunkline_edge.core.token_refresh import TokenRefresh
from trunkline_edge.core.uplink import Uplink
from trunkline_edge.dialects.codec import Codec, DirectReply, FrameRefused, SwitchCodec

#: Answers to requests; each ends one of `unanswered`.
_ANSWERS = frozenset({"ack", "error", "subscribed", "unsubscribed", "history", "cancelled"})
#: Followed by what was missed, and then by a `join`.
_ARRIVALS = frozenset({"connected", "subscribed"})
#: Requests: frames with an id that the router answers.
_REQUESTS = frozenset({"message", "subscribe", "unsubscribe", "history", "cancel", "edit", "recall"})


class Sessions:
    """The connections of one edge.

    Effects gather in `dirty` (something is pending, or the connection is to be closed), which the shell
    empties, in `reading` and in `proofs`.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.counts = EdgeCounters()
        self.uplink = Uplink(limits.uplink_bytes, limits.link_window)
        self.connections: dict[int, Connection] = {}
        self.dirty: set[Connection] = set()
        self.reading = ReadThrottle(limits)
        self.proofs = TokenRefresh(self.uplink)
        #: Connections that the router has not answered yet.
        self.opening = 0
        self._fanout = Fanout(self.connections, self.counts, self.dirty)
        self._last_number = 0
        #: The time of the last batch from the router.
        self._now = 0.0
        #: Requests that were given an id, as they had none.
        self._given_ids = 0

    def open(
        self,
        socket: object,
        codec: Codec,
        opened: ConnectionOpened,
        rollup_ms: int,
        pace: ConnectionRateLimiter | None = None,
    ) -> Connection:
        """A client wants to connect. The answer comes by the link, or never: the shell has a limit."""
        self._last_number += 1
        opened.connection = self._last_number
        known_as = opened.SerializeToString()
        connection = Connection(self._last_number, socket, codec, known_as, rollup_ms, pace)
        self.connections[connection.number] = connection
        self.opening += 1
        if self.uplink.is_up:
            self.uplink.add(len(connection.opened)).opened.CopyFrom(opened)
        return connection

    def received(
        self, connection: Connection, payload: bytes, binary: bool = False, now: float = 0.0
    ) -> None:
        """A client sent a WebSocket message. What is refused is answered; the connection goes on."""
        if connection.state is not ConnectionState.OPEN:
            if connection.state is ConnectionState.OPENING:
                connection.early.append((payload, binary))
                self.reading.stop(connection)
            return
        if connection.held and self.reading.rests(connection):
            # Read together with what was too much: it waits, as what was not read yet does.
            connection.early.append((payload, binary))
            return
        self.counts.frames_in += 1
        too_fast = connection.pace.take(len(payload), now) if connection.pace is not None else None
        try:
            said = connection.codec.decode(payload, binary)
        except FrameRefused as refused:
            if too_fast is None:
                self._refuse(connection, refused.entry, str(refused), refused.frame_id)
                return
            said = None
        if too_fast is not None:
            self._slow_down(connection, said, too_fast)
            return
        if not isinstance(said, ClientFrame):
            self._said_to_codec(connection, said)
        else:
            self._said(connection, said)

    def _slow_down(
        self, connection: Connection, said: ClientFrame | DirectReply | SwitchCodec | None, reason: Refused
    ) -> None:
        """More came than may: it is refused, and the connection is not read from for a while."""
        frame = said.decoded if isinstance(said, SwitchCodec) else said
        kind = frame.WhichOneof("frame") if isinstance(frame, ClientFrame) else None
        self.refuse(connection, reason, getattr(getattr(frame, kind), "id", "") if kind else "")
        self.reading.rest(connection)

    def rested(self, now: float) -> None:
        """Go on with some of those that sent too fast; to be called TURNS_PER_S times a second."""
        for connection in self.reading.rested():
            self._take_early(connection, now)

    def _said_to_codec(self, connection: Connection, said: DirectReply | SwitchCodec | None) -> None:
        """What a client said is its codec's own affair, or some of it."""
        rest: ClientFrame | DirectReply | None
        if isinstance(said, SwitchCodec):
            if said.codec != connection.codec:
                self._fanout.recode(connection, said.codec)
            rest = said.decoded
        else:
            rest = said
        if isinstance(rest, DirectReply):
            self._write(connection, written(connection.codec, rest.payload))
        elif rest is not None:
            self._said(connection, rest)

    def _said(self, connection: Connection, frame: ClientFrame) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "ping":
            self._say(connection, ServerFrame(pong=PongFrame(id=frame.ping.id[:128])))
        elif kind == "disconnect":
            self.close(connection, catalogue.DISCONNECTED.refused())
        elif kind == "auth":
            try:
                self.proofs.show(connection, frame.auth)
            except Refused as reason:
                self.refuse(connection, reason, frame.auth.id)
        elif kind == "resume":
            entry = catalogue.UNEXPECTED_FRAME
            problem = "it can only be the first frame, after connecting with resume=frame"
            self._refuse(connection, entry, entry.sentence(type="resume", problem=problem), "")
        else:
            if kind in _REQUESTS and connection.codec.assigns_ids and not getattr(frame, kind).id:
                self._given_ids += 1
                opened = ConnectionOpened.FromString(connection.opened)
                getattr(frame, kind).id = f"{opened.connection_id}-{self._given_ids}"
            # As the link carries it: some JSON grows fivefold on the way.
            self._forward(connection, kind or "", frame, frame.ByteSize())

    def _forward(self, connection: Connection, kind: str, frame: ClientFrame, size: int) -> None:
        if kind in _REQUESTS:
            frame_id: str = getattr(frame, kind).id
            if frame_id in connection.unanswered:
                self._asked_twice(connection, kind, frame)
                return
            connection.unanswered[frame_id] = (frame, size)
            connection.unanswered_bytes += size
            if not self.reading.has_room(connection):
                self.reading.stop(connection)
        if not self.uplink.is_up:
            return
        entry = self.uplink.add(size).frame
        entry.connection = connection.number
        entry.frame.CopyFrom(frame)
        if self.uplink.is_full:
            self.reading.wait_for_room(connection)

    def _asked_twice(self, connection: Connection, kind: str, frame: ClientFrame) -> None:
        frame_id: str = getattr(frame, kind).id
        first, _ = connection.unanswered[frame_id]
        # The same again is a client's retry: the answer to the first is the answer to both.
        if first != frame:
            entry = catalogue.UNEXPECTED_FRAME
            problem = f"the id {frame_id} is that of a request still under way"
            self._refuse(connection, entry, entry.sentence(type=kind, problem=problem), "")

    def close(self, connection: Connection, reason: Refused) -> None:
        """Close a connection: a `closing` frame, then the WebSocket close with the entry's code."""
        self.end(connection, closing_frame(reason))

    def end(self, connection: Connection, closing: ClosingFrame) -> None:
        """Close a connection with this last frame; nothing comes after it."""
        if connection.state is ConnectionState.CLOSING:
            return
        self._say(connection, ServerFrame(closing=closing))
        self._mark_standing(connection)
        # Its topics go on without it.
        connection.standing = None
        if connection.state is ConnectionState.OPENING:
            self.counts.refused_by[closing.reason] += 1
        self._mark_closing(connection, closing.reason)
        connection.closing = closing
        self._fanout.deafen(connection)
        connection.unanswered.clear()
        connection.unanswered_bytes = 0
        self.reading.ends(connection)
        self.dirty.add(connection)

    def close_slow(self, connection: Connection) -> None:
        """Close a connection that has not taken what it was sent; what gathers for it is dropped."""
        if connection.state is ConnectionState.OPEN:
            self.counts.slow_consumers += 1
            self._fanout.deafen(connection)
            # Where it stands is where the last mark that it was written says.
            connection.standing = None
            self.close(connection, catalogue.SLOW_CONSUMER.refused())

    def caught_up(self, connection: Connection) -> None:
        """A client that lagged has taken all that it was sent: now for the deltas that gathered."""
        connection.lags = False
        self._fanout.catch_up(connection)

    def gathered_bytes(self, connection: Connection) -> int:
        """About how many bytes have gathered for a client that lags, beside what its socket buffers."""
        return self._fanout.gathered_bytes(connection)

    def gone(self, connection: Connection, cause: str = CLIENT_LOST) -> None:
        """The socket is gone; to be called once per connection, whatever ended it.

        `cause` is how the client ended it, where the edge did not.
        """
        if self.connections.pop(connection.number, None) is None:
            return
        self._mark_closing(connection, cause)
        self._fanout.deafen(connection)
        connection.unanswered.clear()
        self.dirty.discard(connection)
        self.reading.forget(connection)
        if self.uplink.is_up:
            self.uplink.add().closed.connection = connection.number

    def _mark_closing(self, connection: Connection, cause: str) -> None:
        if connection.state is ConnectionState.OPENING:
            self.opening -= 1
        elif connection.state is ConnectionState.OPEN:
            self.counts.ended(cause)
        connection.state = ConnectionState.CLOSING

    def heartbeat(self, connections: Iterable[Connection]) -> list[Connection]:
        """One round over some connections. Returns those to ping; the silent ones are closed."""
        to_ping = []
        for connection in connections:
            if connection.state is not ConnectionState.OPEN:
                continue
            # From one that is held nothing can be heard.
            connection.silent_rounds = 1 if connection.held else connection.silent_rounds + 1
            if connection.silent_rounds > 2:
                self.close(connection, catalogue.HEARTBEAT_LOST.refused())
            else:
                to_ping.append(connection)
        return to_ping

    def refuse(self, connection: Connection, reason: Refused, frame_id: str) -> None:
        """Answer a frame of this id with `error`; the connection goes on."""
        self._refuse(connection, reason.entry, str(reason), frame_id, reason.retry_after_ms)

    def _refuse(
        self, connection: Connection, entry: Entry, text: str, frame_id: str, retry_after_ms: int = 0
    ) -> None:
        self.counts.frames_refused += 1
        self.counts.refused_by[entry.code] += 1
        frame = ServerFrame()
        error = frame.error
        error.id, error.code, error.message = frame_id, entry.code, text
        error.retryable, error.retry_after_ms = entry.retryable, retry_after_ms or entry.retry_after_ms
        self._say(connection, frame)

    def _say(self, connection: Connection, frame: ServerFrame) -> None:
        if connection.state is ConnectionState.CLOSING:
            return
        self._write(connection, encoded(connection.codec, frame))

    def _write(self, connection: Connection, data: bytes) -> None:
        """Tell a client something, or nothing; what was published so far comes before it."""
        self._fanout.settle(connection)
        if data:
            connection.pending.append(data)
            self.counts.deliveries += 1
        self.dirty.add(connection)

    def beat(self, connection: Connection) -> None:
        """A heartbeat is due: of the codec's own, if it has one."""
        if connection.state is not ConnectionState.OPEN:
            return
        self._write(connection, written(connection.codec, connection.codec.heartbeat()))
        if connection.delivered is not None:
            connection.delivered.beat()

    def taken(self, connection: Connection) -> None:
        """A client has taken all that it was written: the router is told how far that goes."""
        if connection.delivered is not None:
            connection.delivered.tell(connection.number, connection.topics, self.uplink)

    def send(self, send: ConnectionSend) -> None:
        """The router has a frame for one connection."""
        frame = send.frame
        if send.topic:
            # Also where the client is gone: the topic has come further for those who join it next.
            self._fanout.advance(send.topic, frame.ack.position)
        connection = self.connections.get(send.connection)
        if connection is None or connection.state is ConnectionState.CLOSING:
            self.counts.dropped += 1
            return
        kind = frame.WhichOneof("frame")
        if kind == "error" and connection.delivered is not None and connection.delivered.refuses(frame.error):
            return
        self._take_note(connection, kind or "", frame)
        if kind in _ARRIVALS:
            connection.snapshots = connection.snapshots or []
        self._say(connection, frame)
        if connection.is_arriving and connection.standing is not None:
            connection.standing.passed(frame)
            self._mark_standing(connection)
        if kind == "message" and frame.message.state == MESSAGE_STATE_OPEN:
            self._fanout.snapshot(connection, frame.message)
        if connection.early and not self.reading.rests(connection):
            self._take_early(connection, self._now)

    def _take_note(self, connection: Connection, kind: str, frame: ServerFrame) -> None:
        """What the router says to a client is news to the edge, too."""
        if kind in _ANSWERS:
            self._answered(connection, getattr(frame, kind).id)
        if kind == "connected":
            self._connected(connection, frame)
        elif kind == "authorized":
            self.proofs.taken(connection, frame.authorized.id)
        elif kind == "error":
            self.counts.refused_by[frame.error.code] += 1
            self.proofs.refused(connection, frame.error.id)

    def _connected(self, connection: Connection, frame: ServerFrame) -> None:
        connected = frame.connected
        connected.heartbeat_s = self.limits.heartbeat_s
        connected.limits.frame_bytes = self.limits.frame_bytes
        connected.limits.unanswered = self.limits.unanswered
        if connection.pace is not None:
            tenant = connection.pace.tenant
            connected.limits.frame_bytes = min(self.limits.frame_bytes, tenant.frame_bytes)
            connected.limits.messages_per_s = int(tenant.connection_rate.messages_per_s)
            connected.limits.bytes_per_s = int(tenant.connection_rate.bytes_per_s)
        connected.rollup_ms = connection.rollup_ms
        if connection.state is ConnectionState.OPENING:
            connection.state = ConnectionState.OPEN
            self.opening -= 1
            self.counts.opened += 1
        if connection.codec.appends_cursor:
            connection.standing = ResumeCursor(connected.positions)

    def _mark_standing(self, connection: Connection) -> None:
        """What is pending ends here for now, with a mark."""
        if connection.pending:
            connection.pending[-1] = connection.marked(connection.pending[-1])

    def _take_early(self, connection: Connection, now: float) -> None:
        """What the client sent before it was connected, or while it rested, comes now."""
        early, connection.early = connection.early, []
        for payload, binary in early:
            self.received(connection, payload, binary, now)
        self.reading.go_on(connection)

    def _answered(self, connection: Connection, frame_id: str) -> None:
        if frame_id in connection.unanswered:
            _, size = connection.unanswered.pop(frame_id)
            connection.unanswered_bytes -= size
            self.reading.go_on(connection)
