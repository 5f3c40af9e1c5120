"""Backpressure: closes clients that read too slowly, and withholds credit from the router if all together do.

The backlog of a client is what its socket buffers plus the deltas that gather for it. Two bounds apply:

- `outbox_bytes` for one client. A write beyond it closes the client with SLOW_CONSUMER: what its socket
  buffers stays in order, what waits in the edge is dropped. A slow client delays nobody.
- `outbox_total_bytes` for all clients. Beyond it the edge is congested: the router gets no credit, which
  slows down publishers. A client that takes nothing for `stall_s` meanwhile is closed, so that dead
  clients do not stall the others.

A piece of more than half of `outbox_bytes`, such as a picture, does not count towards the bound of its client
until the backlog is gone: a client that takes its time over it is not slow yet, and a small frame behind it
must not close it. So the backlog of one client is at most `outbox_bytes` plus its largest piece.
"""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1 import catalogue

from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.encoding import count_frames
from trunkline_edge.core.sessions import Sessions


class ClientBackpressure:
    """Backlogs of the clients of one edge, and what they lead to."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._outbox_bytes = sessions.limits.outbox_bytes
        self._total_limit = sessions.limits.outbox_total_bytes
        self._stall_s = sessions.limits.stall_s
        #: Backlog by client, as measured last; none is 0.
        self._backlogs: dict[Connection, int] = {}
        self._total = 0
        #: During congestion, by client: its backlog, and since when that has not changed.
        self._observed: dict[Connection, tuple[int, float]] = {}

    @property
    def total_bytes(self) -> int:
        """Backlog of all clients, as measured last."""
        return self._total

    @property
    def is_congested(self) -> bool:
        """The router must get no credit."""
        return self._total > self._total_limit

    @property
    def backlogged(self) -> list[Connection]:
        """Clients with a backlog."""
        return list(self._backlogs)

    # Writing

    def write_buffered(self, connection: Connection) -> None:
        """Let deltas gather: the socket did not take everything written."""
        connection.has_backlog = True

    def admit(self, connection: Connection, buffered: int, data: bytes) -> bool:
        """Decide whether `data` may be written to a client whose socket buffers `buffered` bytes.

        Otherwise the client is closed as slow, and `data` is dropped.
        """
        if connection.state is not ConnectionState.OPEN:
            return True
        backlog = self._measure(connection, buffered)
        if backlog + len(data) - self._oversize(connection, len(data)) <= self._outbox_bytes:
            return True
        self._sessions.counts.count_undelivered(count_frames(connection.codec, data))
        self.close_slow(connection)
        return False

    def written(self, connection: Connection, buffered: int, size: int) -> None:
        """Record a write of `size` bytes, after which the socket buffers `buffered`."""
        if connection.state is ConnectionState.OPEN:
            connection.oversize_bytes = self._oversize(connection, size)
            self._measure(connection, buffered)

    def caught_up(self, connection: Connection) -> None:
        """Deliver the deltas that gathered: the client has taken everything written to it."""
        connection.has_backlog = False
        connection.oversize_bytes = 0
        self._record(connection, 0)
        self._sessions.fanout.catch_up(connection)
        self._sessions.report_delivery(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a client that is gone or being closed."""
        self._total -= self._backlogs.pop(connection, 0)
        self._observed.pop(connection, None)

    # Congestion

    def measure(self, buffered: Callable[[Connection], int]) -> None:
        """Measure every backlog again; `buffered` returns the bytes that a client's socket buffers."""
        for connection in self.backlogged:
            self._measure(connection, buffered(connection))

    def close_stalled(self, now: float) -> None:
        """While congested, close the clients that have taken nothing for `stall_s`; call after `measure`."""
        if not self.is_congested:
            self._observed.clear()
            return
        for connection in self._take_stalled(now):
            self.close_slow(connection)
        if not self.is_congested:
            self._observed.clear()

    def _take_stalled(self, now: float) -> list[Connection]:
        stalled = []
        for connection, backlog in self._backlogs.items():
            before, since = self._observed.get(connection, (-1, now))
            if backlog != before:
                self._observed[connection] = (backlog, now)
            elif now - since >= self._stall_s:
                stalled.append(connection)
        return stalled

    def close_slow(self, connection: Connection) -> None:
        """Close a client after what its socket buffers; if it does not read that, the transport aborts."""
        self.forget(connection)
        if connection.state is not ConnectionState.OPEN:
            return
        self._sessions.counts.slow_consumers += 1
        self._sessions.fanout.unsubscribe_all(connection)
        # The client resumes from the last cursor it was sent.
        connection.resume_cursor = None
        self._sessions.close(connection, catalogue.SLOW_CONSUMER.refused())

    # Measuring

    def _oversize(self, connection: Connection, size: int) -> int:
        """Return how many bytes of the backlog do not count: the largest oversize piece in it."""
        oversize = size if 2 * size > self._outbox_bytes else 0
        return max(oversize, connection.oversize_bytes)

    def _measure(self, connection: Connection, buffered: int) -> int:
        backlog = buffered + self._sessions.fanout.backlog_bytes(connection)
        self._record(connection, backlog)
        return backlog

    def _record(self, connection: Connection, backlog: int) -> None:
        self._total += backlog - self._backlogs.get(connection, 0)
        if backlog:
            self._backlogs[connection] = backlog
        else:
            self._backlogs.pop(connection, None)

    def __repr__(self) -> str:
        return f"<ClientBackpressure {self._total} bytes for {len(self._backlogs)} clients>"
