"""Retry policy: how often, how long and at which intervals a failed delivery is attempted again. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trunkline.v1.tenant_pb2 import AgentSettings

#: Time to retry a delivery, from its first failure, for agents that set none.
DEFAULT_MAX_RETRY_S = 3600
#: Bound of the first delay, which doubles with each attempt up to the last.
FIRST_DELAY_S = 1.0
LAST_DELAY_S = 60.0


class RetryPolicy(NamedTuple):
    """Bounds of the attempts at one delivery."""

    max_attempts: int
    max_retry_s: float

    @classmethod
    def of(cls, settings: AgentSettings, max_attempts: int) -> RetryPolicy:
        """Return an agent's policy; `max_attempts` applies if it sets none."""
        return cls(settings.max_attempts or max_attempts, settings.max_retry_s or DEFAULT_MAX_RETRY_S)

    def is_used_up(self, attempts: int, elapsed_s: float) -> bool:
        """Return whether no attempt may follow, `elapsed_s` after the first failure."""
        return attempts >= self.max_attempts or elapsed_s >= self.max_retry_s


def backoff_s(attempts: int, random: Callable[[], float]) -> float:
    """Return the delay after this many failed attempts: exponential, with full jitter."""
    bound: float = min(FIRST_DELAY_S * 2.0 ** min(attempts - 1, 16), LAST_DELAY_S)
    return bound * random()
