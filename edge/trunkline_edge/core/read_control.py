"""From which clients to read, and from which not for now."""

from __future__ import annotations

from itertools import islice

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.limits import EdgeLimits

#: How often it is the turn of some that sent too fast.
TURNS_PER_S = 100
#: How many that are at least.
MIN_IN_TURN = 1


class ReadThrottle:
    """Holds back connections that have too much under way, wait for room on the link, or sent too fast.

    Effects gather in `hold` (stop reading from it) and `release` (read from it again), which the shell
    empties.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self.hold: set[Connection] = set()
        self.release: set[Connection] = set()
        self.waiting_for_room: set[Connection] = set()
        #: Those that sent too fast, who came first first: nothing is read from them until `rested`.
        self._resting: dict[Connection, None] = {}
        #: So many have their turn at a time, that all have had theirs within a second.
        self._in_turn = MIN_IN_TURN

    def stop(self, connection: Connection) -> None:
        """Read no more from it, until `go_on` finds nothing that is in the way."""
        if not connection.held:
            connection.held = True
            self.hold.add(connection)
            self.release.discard(connection)

    def go_on(self, connection: Connection) -> None:
        """Read from it again, if nothing is in the way any longer."""
        waits = connection in self.waiting_for_room or connection in self._resting
        if connection.held and not waits and self.has_room(connection):
            connection.held = False
            self.release.add(connection)
            self.hold.discard(connection)

    def has_room(self, connection: Connection) -> bool:
        """It may have more requests under way."""
        few = len(connection.unanswered) < self._limits.unanswered
        return few and connection.unanswered_bytes <= self._limits.unanswered_bytes

    def wait_for_room(self, connection: Connection) -> None:
        """The link takes no more for now."""
        self.waiting_for_room.add(connection)
        self.stop(connection)

    def room_came(self) -> None:
        """The link takes more."""
        waiting, self.waiting_for_room = self.waiting_for_room, set()
        for connection in waiting:
            self.go_on(connection)

    def rest(self, connection: Connection) -> None:
        """It sent too fast."""
        self._resting[connection] = None
        self._in_turn = max(self._in_turn, -(-len(self._resting) // TURNS_PER_S))
        self.stop(connection)

    @property
    def has_resting(self) -> bool:
        """Some rest: `rested` is to be called TURNS_PER_S times a second."""
        return bool(self._resting)

    def rests(self, connection: Connection) -> bool:
        """It sent too fast, and its turn has not come."""
        return connection in self._resting

    def rested(self) -> list[Connection]:
        """Whose turn it is; the caller takes what was read of each, and then lets it `go_on`.

        A few at a time, so that what has gathered does not come in one piece, and so few of those of a
        tenant, however many they are, that refusing them costs the others nothing.
        """
        turn = list(islice(self._resting, self._in_turn))
        for connection in turn:
            del self._resting[connection]
        if not self._resting:
            self._in_turn = MIN_IN_TURN
        return turn

    def ends(self, connection: Connection) -> None:
        """It is being closed: its side of the closing handshake is to be read."""
        self.waiting_for_room.discard(connection)
        self._resting.pop(connection, None)
        self.go_on(connection)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        for group in (self.hold, self.release, self.waiting_for_room):
            group.discard(connection)
        self._resting.pop(connection, None)
