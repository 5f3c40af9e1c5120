"""Order and pace of attempts to link. Pure."""

from __future__ import annotations

from collections.abc import Callable

from trunkline_runtime.router_addresses import RouterAddresses

#: Pauses are random between 0 and this, doubled with each pass that failed, up to the cap.
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 3.0
#: Cap while a router answers that it is a standby: it may take over at any moment.
STANDBY_BACKOFF_S = 1.0
#: A link that lasted this long begins a new pass when it breaks.
STABLE_S = 1.0


class LinkAttempts:
    """Chooses the router of each attempt, and the pause before it.

    A pass tries each router once, one after the other without a pause. After it comes a pause with full
    jitter, so that the edges of a router that restarts do not return at once.
    """

    def __init__(self, routers: RouterAddresses, random: Callable[[], float]) -> None:
        """`random` returns a number from 0 to 1."""
        self._routers = routers
        self._random = random
        #: Router of the next attempt.
        self.router = routers.in_use
        self._failed = 0
        self._has_met_standby = False
        self._backoff_s = FIRST_BACKOFF_S

    def link_was_up(self, uptime_s: float) -> None:
        """Start again with the shortest pause; call it before `fail` if the attempt had succeeded."""
        self._backoff_s = FIRST_BACKOFF_S
        if uptime_s >= STABLE_S:
            self._end_pass()

    def fail(self, *, may_be_standby: bool = False) -> float:
        """Go on to the next router; return the pause before it in seconds."""
        self._failed += 1
        self._has_met_standby |= may_be_standby
        self.router = self._routers.after(self.router)
        if self._failed < len(self._routers):
            return 0.0
        cap_s = STANDBY_BACKOFF_S if self._has_met_standby else LAST_BACKOFF_S
        pause_s = self._random() * min(self._backoff_s, cap_s)
        self._backoff_s = min(self._backoff_s * 2, cap_s)
        self._end_pass()
        return pause_s

    def prefer(self, router: str) -> None:
        """Try this router next, because it owns the log."""
        self.router = router

    def _end_pass(self) -> None:
        self._failed = 0
        self._has_met_standby = False
