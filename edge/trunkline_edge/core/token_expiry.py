"""Expiry of the tokens that connections were made with."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count

from trunkline_edge.core.connection import Authenticated, Connection

#: Stale entries that are kept however few connections there are.
_STALE_ENTRIES = 1000


class TokenExpiries:
    """Connections by the expiry of their token.

    Entries of tokens that were replaced, or whose connection is gone, are stale: they are skipped when due,
    and dropped once there are more than `2 * connections + 1000` entries.
    """

    def __init__(self, connections: Mapping[int, Connection]) -> None:
        self._connections = connections
        #: By expiry; a counter orders equal ones, since tokens have no order.
        self._due: list[tuple[float, int, int, Authenticated]] = []
        self._added = count()

    def add(self, connection: Connection) -> None:
        """Watch the connection's token, if it has one that expires."""
        principal = connection.principal
        if principal is not None and principal.expires_at_s is not None:
            entry = (principal.expires_at_s, next(self._added), connection.number, principal)
            heapq.heappush(self._due, entry)
            if len(self._due) > 2 * len(self._connections) + _STALE_ENTRIES:
                self._drop_stale()

    def _drop_stale(self) -> None:
        self._due = [entry for entry in self._due if self._is_current(entry[2], entry[3])]
        heapq.heapify(self._due)

    def _is_current(self, number: int, principal: Authenticated) -> bool:
        connection = self._connections.get(number)
        return connection is not None and connection.principal is principal

    def take_expired(self, wall_s: float) -> list[Connection]:
        """Return the connections whose token has expired by this wall-clock time."""
        expired = []
        while self._due and self._due[0][0] <= wall_s:
            _, _, number, principal = heapq.heappop(self._due)
            if self._is_current(number, principal):
                expired.append(self._connections[number])
        return expired

    def __len__(self) -> int:
        return len(self._due)
