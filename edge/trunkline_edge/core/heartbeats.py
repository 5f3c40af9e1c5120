"""Heartbeat schedule: every connection once per interval, spread evenly over its seconds."""

from __future__ import annotations

from trunkline_edge.core.connection import Connection


class HeartbeatSchedule:
    """Connections by the second of the interval in which their heartbeat is due."""

    def __init__(self, interval_s: int) -> None:
        self._slots: list[set[Connection]] = [set() for _ in range(interval_s)]
        self._current = 0

    def add(self, connection: Connection) -> None:
        """Schedule a connection."""
        self._slots[connection.number % len(self._slots)].add(connection)

    def remove(self, connection: Connection) -> None:
        """Drop a connection. Idempotent."""
        self._slots[connection.number % len(self._slots)].discard(connection)

    def take_due(self) -> list[Connection]:
        """Advance by one second and return the connections whose heartbeat is due."""
        self._current = (self._current + 1) % len(self._slots)
        return list(self._slots[self._current])

    def __len__(self) -> int:
        return sum(map(len, self._slots))
