"""Read control: pauses clients that send more than the edge, the link or their rate limits take."""

from __future__ import annotations

from itertools import islice

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.effects import Effect, PauseReading, ResumeReading
from trunkline_edge.core.limits import EdgeLimits

#: Batches of throttled connections released per second.
BATCHES_PER_S = 100
#: Smallest batch.
MIN_BATCH = 1


class ReadThrottle:
    """Pauses reading from connections.

    Reasons are their unanswered or rate limit, a full uplink, and a frame that waits for its uploads.
    """

    def __init__(self, limits: EdgeLimits, effects: list[Effect]) -> None:
        self._limits = limits
        self._effects = effects
        self.waiting_for_uplink: set[Connection] = set()
        #: Connections that exceeded a rate limit, oldest first.
        self._throttled: dict[Connection, None] = {}
        #: Connections with a frame that waits for its uploads.
        self._awaiting_uploads: set[Connection] = set()
        #: Chosen so that each throttled connection is released within a second.
        self._batch = MIN_BATCH
        #: When `unthrottle_next` is due; None while nobody is throttled.
        self.next_due: float | None = None

    def pause(self, connection: Connection) -> None:
        """Stop reading until `resume` finds no reason left to wait."""
        if not connection.reading_paused:
            connection.reading_paused = True
            self._effects.append(PauseReading(connection))

    def resume(self, connection: Connection) -> None:
        """Read again, unless another reason to wait remains."""
        waits = connection in self.waiting_for_uplink or self.is_throttled(connection)
        if connection.reading_paused and not waits and self.has_room(connection):
            connection.reading_paused = False
            self._effects.append(ResumeReading(connection))

    def has_room(self, connection: Connection) -> bool:
        """Return True if the connection may have more unanswered requests."""
        few = len(connection.unanswered) < self._limits.unanswered
        return few and connection.unanswered_bytes <= self._limits.unanswered_bytes

    def wait_for_uplink(self, connection: Connection) -> None:
        """Pause until the uplink has room."""
        self.waiting_for_uplink.add(connection)
        self.pause(connection)

    def uplink_has_room(self) -> None:
        """Resume the connections that waited for the uplink."""
        waiting, self.waiting_for_uplink = self.waiting_for_uplink, set()
        for connection in waiting:
            self.resume(connection)

    def throttle(self, connection: Connection, now: float) -> None:
        """Pause a connection that exceeded a rate limit, until `unthrottle_next` returns it."""
        self._throttled[connection] = None
        self._batch = max(self._batch, -(-len(self._throttled) // BATCHES_PER_S))
        if self.next_due is None:
            self.next_due = now + 1 / BATCHES_PER_S
        self.pause(connection)

    def await_uploads(self, connection: Connection) -> None:
        """Pause a connection whose frame waits for uploads, until `uploads_ended`."""
        self._awaiting_uploads.add(connection)
        self.pause(connection)

    def uploads_ended(self, connection: Connection) -> None:
        """End that pause; the caller handles the buffered input, then calls `resume`."""
        self._awaiting_uploads.discard(connection)

    def is_throttled(self, connection: Connection) -> bool:
        """Return True if what the connection sends is buffered.

        It exceeded a rate limit and was not released yet, or a frame of it waits for uploads.
        """
        return connection in self._throttled or connection in self._awaiting_uploads

    def unthrottle_next(self, now: float) -> list[Connection]:
        """Release the next batch; the caller handles their buffered input, then calls `resume`.

        Small batches spread the load, and bound what rejecting the clients of one tenant costs the others.
        """
        batch = list(islice(self._throttled, self._batch))
        for connection in batch:
            del self._throttled[connection]
        self.next_due = now + 1 / BATCHES_PER_S
        self._reset_if_idle()
        return batch

    def closing(self, connection: Connection) -> None:
        """Resume a connection that is being closed: its closing handshake must be read."""
        self.forget(connection)
        self.resume(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is gone."""
        self.waiting_for_uplink.discard(connection)
        self._awaiting_uploads.discard(connection)
        if connection in self._throttled:
            del self._throttled[connection]
            self._reset_if_idle()

    def _reset_if_idle(self) -> None:
        if not self._throttled:
            self.next_due = None
            self._batch = MIN_BATCH
