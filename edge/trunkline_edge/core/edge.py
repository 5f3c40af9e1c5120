"""The edge's core: clients on one side, one link on the other.

A shell calls it from one thread. After each call it writes what `dirty` connections have pending, as
`Connection.marked` completes it, closes those that are CLOSING, does what `reading` and `proofs` ask for,
takes note of `policies`, empties all of these, wakes the link's writer if `uplink.is_ready`, and calls
`flush_due` at `next_due`. While `reading.has_resting` it calls `rested`. While something is buffered for a
client it sets its `lags`, and then calls `caught_up`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.edge_service_pb2 import (
    ConnectionClose,
    ConnectionOpened,
    LinkResponse,
    PoliciesTold,
    TenantGone,
    TenantPolicy,
    TopicForgotten,
)

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.sessions import Sessions

#: From this size on a batch's credit is returned at once: under load, each batch is then as large as
#: what gathered while the one before was written, rather than a large one followed by small ones.
BULK_ENTRIES = 32


class EdgeCore(Sessions):
    """The clients of one edge, and their link."""

    def __init__(self, limits: EdgeLimits) -> None:
        super().__init__(limits)
        #: What the router has told of tenants; the shell empties it.
        self.policies: list[TenantPolicy | TenantGone | PoliciesTold] = []
        #: By the name of a RouterEntry's field.
        self._handlers: dict[str, Callable[[Any], None]] = {
            "topic": self._fanout.topic,
            "join": self._fanout.join,
            "leave": self._fanout.leave,
            "publish": self._fanout.publish,
            "forget": self._forget,
            "send": self.send,
            "close": self._close,
            "policy": self.policies.append,
            "gone": self.policies.append,
            "policies_told": self.policies.append,
        }

    def linked(self) -> None:
        """A link is up: make known all there is, then send again what was not answered.

        The router answers with new numbers for the topics and with what they have missed.
        """
        self.uplink.restart(is_up=True)
        self.counts.links += 1
        for topic in self._fanout.known():
            entry = self.uplink.add(len(topic.address)).topic
            entry.address.MergeFromString(topic.address)
            entry.position.epoch, entry.position.seq = topic.epoch, topic.seq
        # Those accepted first: what their topics have missed must not be told to those that come new.
        for connection in sorted(
            self.connections.values(), key=lambda known: known.state is ConnectionState.OPENING
        ):
            if connection.state is ConnectionState.CLOSING:
                continue
            opened = self.uplink.add(len(connection.opened)).opened
            opened.MergeFromString(connection.opened)
            if connection.state is ConnectionState.OPEN:
                opened.restored = True
                opened.ClearField("resume")
                _add_groups(connection, opened)
        for connection in self.connections.values():
            self.proofs.tell(connection)
            for frame, size in connection.unanswered.values():
                entry_frame = self.uplink.add(size).frame
                entry_frame.connection = connection.number
                entry_frame.frame.CopyFrom(frame)

    def link_lost(self) -> None:
        """The link broke. Connections stay; what they ask for waits."""
        self.uplink.restart(is_up=False)
        self._fanout.link_lost()
        self.reading.room_came()
        for connection in list(self.connections.values()):
            if connection.delivered is not None:
                connection.delivered.link_lost()
            if connection.is_arriving:
                self.close(connection, catalogue.POSITION_LOST.refused())

    def link_received(self, batch: LinkResponse, now: float) -> None:
        """A batch came from the router. Its credit is to be returned by `dealt_with`.

        `now` is in seconds, as `next_due` will be.
        """
        self._now = now
        self.uplink.credit += batch.credit
        if not batch.entries:
            return
        self.counts.batches_in += 1
        for entry in batch.entries:
            kind = entry.WhichOneof("entry")
            if kind is not None:
                self._handlers[kind](getattr(entry, kind))
        self._fanout.settle_all(now)

    @property
    def next_due(self) -> float | None:
        """When `flush_due` is to be called, if anything waits for that; it may change with every call."""
        return self._fanout.rollup.next_due

    def flush_due(self, now: float) -> None:
        """Time has passed: give the deltas whose window is over."""
        self._fanout.rollup.flush_due(now)

    def dealt_with(self, entries: int) -> None:
        """A batch of so many entries is written to its sockets: the router may send another."""
        self.uplink.owe(at_once=entries >= BULK_ENTRIES)

    def drained(self) -> None:
        """A batch was written to the router."""
        if self.reading.waiting_for_room and self.uplink.has_room:
            self.reading.room_came()

    def _forget(self, forgotten: TopicForgotten) -> None:
        self._fanout.forget(forgotten.topic)

    def _close(self, close: ConnectionClose) -> None:
        connection = self.connections.get(close.connection)
        if connection is not None:
            self.end(connection, close.closing)


def _add_groups(connection: Connection, opened: ConnectionOpened) -> None:
    """The groups that a connection has joined beside the conversation it was made to."""
    for topic in connection.topics:
        address = Address.FromString(topic.address)
        if address.HasField("conversation") and address.conversation != opened.address.conversation:
            opened.groups.append(address.conversation)
