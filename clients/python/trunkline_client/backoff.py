"""Waits between attempts to connect. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Exponential backoff with full jitter, so that clients of a restarted server do not return at once."""

    def __init__(self, rng: Callable[[], float], *, base_s: float = 0.1, cap_s: float = 5.0) -> None:
        self._random = rng
        self._base_s = base_s
        self._cap_s = cap_s
        self._attempts = 0

    def next_s(self, at_least_s: float = 0.0, *, cap_s: float | None = None) -> float:
        """Returns the next wait in seconds: `at_least_s`, plus a uniform share of a bound that doubles.

        `cap_s` bounds that share, if it is lower than the own cap.
        """
        bound_s = self._bound_s if cap_s is None else min(self._bound_s, cap_s)
        self._attempts += 1
        return at_least_s + self._random() * bound_s

    def record_uptime(self, uptime_s: float) -> None:
        """Resets after a connection that lasted a second, and longer than the next wait.

        Connections that break as soon as they are made keep on backing off.
        """
        if uptime_s >= max(1.0, self._bound_s):
            self.reset()

    def reset(self) -> None:
        """Starts again with the shortest wait."""
        self._attempts = 0

    @property
    def _bound_s(self) -> float:
        return min(self._cap_s, self._base_s * 2.0 ** min(self._attempts, 32))
