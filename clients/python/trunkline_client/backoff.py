"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Exponential backoff with full jitter, so that clients of a restarted server do not come at once."""

    def __init__(self, rng: Callable[[], float], *, base_s: float = 0.1, cap_s: float = 5.0) -> None:
        self._random = rng
        self._base_s = base_s
        self._cap_s = cap_s
        self._attempts = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The next wait in seconds: uniform up to a bound that doubles, on top of what was asked for."""
        bound_s = self._bound_s
        self._attempts += 1
        return at_least_s + self._random() * bound_s

    def held(self, for_s: float) -> None:
        """The connection held for so long: begins anew if that is a second and longer than the next wait.

        What breaks as soon as it is made goes on waiting longer.
        """
        if for_s >= max(1.0, self._bound_s):
            self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._attempts = 0

    @property
    def _bound_s(self) -> float:
        return min(self._cap_s, self._base_s * 2.0 ** min(self._attempts, 32))
