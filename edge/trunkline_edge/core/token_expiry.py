"""Expiry of the tokens that connections were made with."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count

from trunkline_edge.core.connection import Authenticated, Connection


class TokenExpiries:
    """Connections by the expiry of their token. Entries of tokens that were replaced are skipped when due."""

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

    def take_expired(self, wall_s: float) -> list[Connection]:
        """Return the connections whose token has expired by this wall-clock time."""
        expired = []
        while self._due and self._due[0][0] <= wall_s:
            _, _, number, principal = heapq.heappop(self._due)
            connection = self._connections.get(number)
            if connection is not None and connection.principal is principal:
                expired.append(connection)
        return expired
