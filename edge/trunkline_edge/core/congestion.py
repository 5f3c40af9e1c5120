"""When clients together take less than comes: hold back the router rather than close them all.

One slow client is closed when its own buffer is full, and holds nobody back. Only when the buffers
of all together exceed a budget is credit withheld from the router, which holds back publishers in
its turn. Meanwhile whoever takes nothing at all is closed, so that clients that have died cannot
stall the others.
"""

from __future__ import annotations

from trunkline_edge.core.connection import Connection


class Congestion:
    """How much is buffered for clients that lag.

    The shell reports, before each write, what is still buffered for that client, and while
    `is_congested` asks with `look` now and then whether things have improved.
    """

    def __init__(self, budget_bytes: int, stall_s: float) -> None:
        self.budget_bytes = budget_bytes
        self._stall_s = stall_s
        self._lagging: dict[Connection, int] = {}
        self._total = 0
        #: For each lagging client while congested: buffered bytes when last looked at, and since when.
        self._seen: dict[Connection, tuple[int, float]] = {}

    @property
    def buffered_bytes(self) -> int:
        """What lagging clients have not taken yet, as last reported."""
        return self._total

    @property
    def is_congested(self) -> bool:
        """Nothing more should come from the router for now."""
        return self._total > self.budget_bytes

    def report(self, connection: Connection, buffered: int) -> None:
        """So much is buffered for a client now."""
        self._total += buffered - self._lagging.get(connection, 0)
        if buffered:
            self._lagging[connection] = buffered
        else:
            self._lagging.pop(connection, None)

    def gone(self, connection: Connection) -> None:
        """The client is gone, and its buffer with it."""
        self._total -= self._lagging.pop(connection, 0)
        self._seen.pop(connection, None)

    @property
    def lagging(self) -> list[Connection]:
        """Clients for which something is buffered."""
        return list(self._lagging)

    def stalled(self, now: float) -> list[Connection]:
        """Lagging clients that have taken nothing for too long; to be asked while congested."""
        found = []
        for connection, buffered in self._lagging.items():
            before, since = self._seen.get(connection, (-1, now))
            if buffered != before:
                self._seen[connection] = (buffered, now)
            elif now - since >= self._stall_s:
                found.append(connection)
        return found

    def eased(self) -> None:
        """Congestion is over."""
        self._seen.clear()
