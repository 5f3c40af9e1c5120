"""The edge's core: clients on one side, one link on the other.

Sans-I/O, called from one thread. After each call the caller carries out its consequences, in this order:

1. For each connection in `dirty`, which it empties: write what `take_pending` returns, then call `written`.
2. Carry out `effects`, which it empties; this may make connections dirty again.
3. Wake the link's writer if `uplink.is_ready`.
4. Call `time_passed` at `next_due`, which any call may change.

A transport that could not write everything calls `backpressure.write_buffered`, and `backpressure.caught_up`
once it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.edge_service_pb2 import (
    ConnectionClose,
    ConnectionOpened,
    ConnectionSend,
    LinkResponse,
    PoliciesTold,
    TenantGone,
    TenantPolicy,
    TopicForgotten,
    TopicsJoined,
)

from trunkline_edge.core.backpressure import ClientBackpressure
from trunkline_edge.core.client_frames import ClientFrameHandler
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.counters import CLIENT_LOST
from trunkline_edge.core.effects import ApplyPolicy, RejectHandshake
from trunkline_edge.core.encoding import add_framing
from trunkline_edge.core.handshakes import Handshakes
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.router_frames import RouterFrameHandler
from trunkline_edge.core.sessions import Sessions
from trunkline_edge.core.token_refresh import TokenRefresh

#: Credit of a batch of this size is returned at once: under load, each batch then holds what gathered while
#: the one before was written, instead of a large batch followed by small ones.
BULK_ENTRIES = 32
#: Time without a link after which HTTP requests that wait for a reply are ended. A router restarts in less.
LINK_PATIENCE_S = 30.0


class EdgeCore:
    """The clients of one edge, and their link."""

    def __init__(self, limits: EdgeLimits) -> None:
        self.limits = limits
        self.sessions = Sessions(limits)
        self.counts = self.sessions.counts
        self.effects = self.sessions.effects
        self.dirty = self.sessions.dirty
        self.connections = self.sessions.connections
        self.uplink = self.sessions.uplink
        self.fanout = self.sessions.fanout
        self.throttle = self.sessions.throttle
        self.handshakes = Handshakes(limits)
        self.backpressure = ClientBackpressure(self.sessions)
        self.token_refresh = TokenRefresh(self.sessions)
        self.client_frames = ClientFrameHandler(self.sessions, self.token_refresh)
        self._router_frames = RouterFrameHandler(self.sessions, self.client_frames, self.token_refresh)
        #: Time of the last batch from the router.
        self._now = 0.0
        #: Time of the first tick without a link, on the clock of `tick`; None while there is one.
        self._down_since: float | None = None
        #: By the name of a RouterEntry's field.
        self._handlers: dict[str, Callable[[Any], None]] = {
            "topic": self.fanout.open_topic,
            "join": self._subscribe,
            "leave": self.fanout.unsubscribe,
            "publish": self.fanout.publish,
            "forget": self._forget_topic,
            "send": self._send,
            "close": self._close,
            "policy": self._apply_policy,
            "gone": self._apply_policy,
            "policies_told": self._apply_policy,
        }

    # Writing

    def take_pending(self, connection: Connection, buffered: int) -> bytes | None:
        """Return the data to write to a dirty connection, in one piece; empty for none.

        `buffered` is what the socket buffers; it is ignored unless the connection has a backlog. None means
        that the client is too slow: it is being closed, and the connection is dirty again.

        A connection without backlog, `resume_cursor` and `delivery_reporter` needs no decision: the caller
        may join `pending` itself, and need not call `written`.
        """
        pending, connection.pending = connection.pending, []
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        if connection.has_backlog and not self.backpressure.admit(connection, buffered, data):
            return None
        return data if connection.resume_cursor is None else connection.with_cursor(data)

    def written(self, connection: Connection, buffered: int, size: int) -> None:
        """Record that `size` bytes were written, after which the socket buffers `buffered`.

        Must not be called if the socket is closing.
        """
        if connection.has_backlog:
            self.backpressure.written(connection, buffered, size)
        elif connection.delivery_reporter is not None:
            connection.delivery_reporter.report(connection.number, self.uplink)

    def gone(self, connection: Connection, cause: str = CLIENT_LOST) -> None:
        """Remove a connection whose socket is gone; see `Sessions.gone`."""
        self.backpressure.forget(connection)
        self.sessions.gone(connection, cause)

    # The link

    def linked(self, now: float = 0.0) -> None:
        """Declare everything on a new link, then send living signals and unanswered requests again.

        The router answers with numbers for the topics and with the entries they have missed.
        """
        self.uplink.restart(is_up=True)
        self.counts.links += 1
        for head in self.fanout.topics_to_declare():
            entry = self.uplink.add(len(head.address)).topic
            entry.address.MergeFromString(head.address)
            entry.position.epoch, entry.position.seq = head.epoch, head.seq
        # Accepted connections first: new ones must not receive what topics have missed.
        for connection in sorted(
            self.connections.values(), key=lambda known: known.state is ConnectionState.OPENING
        ):
            if connection.state is not ConnectionState.CLOSING:
                self._declare(connection)
        for number, signal in self.fanout.topic_signals.relinked(now):
            sender = self.connections.get(number)
            if sender is not None and sender.state is ConnectionState.OPEN:
                entry_frame = self.uplink.add(signal.ByteSize()).frame
                entry_frame.connection = number
                entry_frame.frame.signal.CopyFrom(signal)
        for connection in self.connections.values():
            self.token_refresh.send(connection)
            for frame, size in connection.unanswered.values():
                entry_frame = self.uplink.add(size).frame
                entry_frame.connection = connection.number
                entry_frame.frame.CopyFrom(frame)

    def _declare(self, connection: Connection) -> None:
        opened = self.uplink.add(len(connection.registration_bytes)).opened
        opened.MergeFromString(connection.registration_bytes)
        if connection.state is ConnectionState.OPEN:
            opened.restored = True
            opened.ClearField("resume")
            self._add_groups(connection, opened)

    def _add_groups(self, connection: Connection, opened: ConnectionOpened) -> None:
        """Name the groups that a connection has joined beside its initial conversation."""
        for head in self.fanout.heads_of(connection):
            address = Address.FromString(head.address)
            if address.HasField("conversation") and address.conversation != opened.address.conversation:
                opened.groups.append(address.conversation)

    def link_lost(self) -> None:
        """Keep connections and their requests for the next link; a replay under way cannot be completed."""
        self.uplink.restart(is_up=False)
        self.fanout.link_lost()
        self.throttle.uplink_has_room()
        for connection in list(self.connections.values()):
            if connection.delivery_reporter is not None:
                connection.delivery_reporter.link_lost()
            if connection.is_replaying:
                self.sessions.close(connection, catalogue.POSITION_LOST.refused())

    def link_received(self, batch: LinkResponse, now: float) -> None:
        """Handle a batch from the router; call `batch_delivered` once it is written to the sockets.

        Raises KeyError if it names an unknown topic.
        """
        self._now = self.fanout.topic_signals.now = now
        self.uplink.credit += batch.credit
        if not batch.entries:
            return
        self.counts.batches_in += 1
        for entry in batch.entries:
            kind = entry.WhichOneof("entry")
            if kind is not None:
                self._handlers[kind](getattr(entry, kind))
        self.fanout.end_batch(now)

    def batch_delivered(self, entries: int) -> None:
        """Return the credit of a batch of this many entries, so that the router may send another."""
        self.uplink.return_credit(urgent=entries >= BULK_ENTRIES)

    def batch_sent(self) -> None:
        """Resume clients that waited for the uplink, if a batch that was sent made room."""
        if self.throttle.waiting_for_uplink and self.uplink.has_room:
            self.throttle.uplink_has_room()

    def _send(self, sent: ConnectionSend) -> None:
        self._router_frames.received(sent, self._now)

    def _subscribe(self, joined: TopicsJoined) -> None:
        self.fanout.subscribe(joined)
        connection = self.connections.get(joined.connection)
        if connection is not None and connection.codec.is_exchange:
            self.sessions.write(connection, add_framing(connection.codec, connection.codec.subscribed()))

    def _close(self, close: ConnectionClose) -> None:
        connection = self.connections.get(close.connection)
        if connection is not None:
            self.sessions.close_with(connection, close.closing)

    def _forget_topic(self, forgotten: TopicForgotten) -> None:
        self.fanout.forget_topic(forgotten.topic)

    def _apply_policy(self, policy: TenantPolicy | TenantGone | PoliciesTold) -> None:
        self.effects.append(ApplyPolicy(policy))

    # Time

    @property
    def next_due(self) -> float | None:
        """Time of the next `time_passed`, on the clock of `link_received`; None if nothing is due."""
        rollup, throttle = self.fanout.rollup.next_due, self.throttle.next_due
        signals = self.fanout.topic_signals.next_due
        if throttle is None and signals is None:
            return rollup
        return min(due for due in (rollup, throttle, signals) if due is not None)

    def time_passed(self, now: float) -> None:
        """Deliver deltas whose window has ended, end signals, and read from throttled clients again."""
        self.fanout.rollup.flush_due(now)
        if self.fanout.topic_signals:
            self.fanout.end_due_signals(now)
        if self.throttle.next_due is not None and self.throttle.next_due <= now:
            self.client_frames.unthrottle_next(now)

    def tick(self, now: float, wall_s: float) -> None:
        """Send due heartbeats, and end expired tokens and handshakes; call once a second."""
        self.sessions.heartbeat(self.sessions.heartbeats.take_due())
        self.sessions.close_expired(wall_s)
        self._reject_expired_handshakes(now)
        self._close_cut_off(now)

    def _close_cut_off(self, now: float) -> None:
        """Close the exchanges, whose requests have no other time limit, once the link is down for long."""
        if self.uplink.is_up:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        elif now - self._down_since >= LINK_PATIENCE_S:
            for connection in list(self.connections.values()):
                if connection.codec.is_exchange:
                    self.sessions.close(connection, catalogue.ROUTER_UNAVAILABLE.refused())

    def _reject_expired_handshakes(self, now: float) -> None:
        for handshake in self.handshakes.take_expired(now):
            reason = catalogue.HANDSHAKE_TIMEOUT.refused(limit_s=f"{self.limits.handshake_timeout_s:g}")
            if not self.uplink.is_up:
                reason = catalogue.ROUTER_UNAVAILABLE.refused()
            if handshake.connection is None:
                self.effects.append(RejectHandshake(handshake, reason))
            else:
                self.sessions.close(handshake.connection, reason)

    def __repr__(self) -> str:
        link = "linked" if self.uplink.is_up else "no link"
        return f"<EdgeCore {len(self.connections)} connections, {link}>"
