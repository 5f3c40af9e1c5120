"""Handshakes in progress: their number is limited, and each has a deadline."""

from __future__ import annotations

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.limits import EdgeLimits


class Handshake:
    """One client between its request and the first byte of the response; identity is its key."""

    __slots__ = ("connection", "deadline_s")

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        #: Set once the client is admitted.
        self.connection: Connection | None = None


class Handshakes:
    """Handshakes in progress, oldest first, at most `max_handshakes`."""

    def __init__(self, limits: EdgeLimits) -> None:
        self._max = limits.max_handshakes
        self._timeout_s = limits.handshake_timeout_s
        self._pending: dict[Handshake, None] = {}

    @property
    def has_room(self) -> bool:
        """Another handshake may begin; the caller rejects the client otherwise."""
        return len(self._pending) < self._max

    @property
    def is_empty(self) -> bool:
        """No handshake is in progress."""
        return not self._pending

    def begin(self, now: float) -> Handshake:
        """Begin a handshake; it must `end`, or expires."""
        handshake = Handshake(now + self._timeout_s)
        self._pending[handshake] = None
        return handshake

    def end(self, handshake: Handshake) -> None:
        """Remove a handshake: the client was answered or is gone. Idempotent."""
        self._pending.pop(handshake, None)

    def take_expired(self, now: float) -> list[Handshake]:
        """Remove and return the handshakes past their deadline."""
        expired = []
        for handshake in self._pending:
            if handshake.deadline_s > now:
                break
            expired.append(handshake)
        for handshake in expired:
            del self._pending[handshake]
        return expired

    def __contains__(self, handshake: Handshake) -> bool:
        return handshake in self._pending

    def __len__(self) -> int:
        return len(self._pending)
