"""The routers that a program knows, and the one that it calls first. Pure."""

from __future__ import annotations

from trunkline.v1 import catalogue

from trunkline_client.backoff import Backoff
from trunkline_client.errors import Refused, TransportError
from trunkline_client.rpc_errors import retry_delay_s

#: Most routers in one list.
MAX_ROUTERS = 16
#: Bound of the wait after a standby refused a stream: it may take over at any moment.
STANDBY_WAIT_S = 1.0


class RouterChoice:
    """Routers that share one log, which one of them owns; the others refuse calls as standbys."""

    def __init__(self, text: str) -> None:
        """Parses `host:port,host:port`. Raises ValueError."""
        self._routers = _parse(text)
        #: The one to call first: the last one that served this program.
        self.current = self._routers[0]

    def __len__(self) -> int:
        return len(self._routers)

    def __str__(self) -> str:
        return ",".join(self._routers)

    def in_order(self) -> list[str]:
        """All routers, from the current one."""
        start = self._routers.index(self.current)
        return self._routers[start:] + self._routers[:start]

    def leave(self, router: str) -> None:
        """Goes on to the next router, unless another caller has done so already."""
        if router == self.current:
            self.current = self._routers[(self._routers.index(router) + 1) % len(self._routers)]


class StreamRetries:
    """Router and wait of each attempt at a stream: one pass over the routers has no waits."""

    def __init__(self, routers: RouterChoice, backoff: Backoff) -> None:
        self._routers = routers
        self._backoff = backoff
        self._failed = 0
        self._has_met_standby = False
        #: The pass goes on: after the last failure another router is tried without a wait.
        self.goes_on = False

    def succeeded(self) -> None:
        """Starts again with the shortest wait."""
        self._backoff.reset()

    def wait_s(self, router: str, error: Refused | TransportError) -> float | None:
        """Returns the wait after a failure, in seconds; None if trying again is of no use.

        A router that is a standby or does not answer is left for the next one.
        """
        delay_s = retry_delay_s(error)
        if delay_s is None:
            return None
        is_standby = is_refusal_of_standby(error)
        self.goes_on = False
        if isinstance(error, Refused) and not is_standby:
            return self._backoff.next_s(delay_s)
        self._routers.leave(router)
        self._failed += 1
        self._has_met_standby |= is_standby
        self.goes_on = self._failed < len(self._routers)
        if self.goes_on:
            return 0.0
        cap_s = STANDBY_WAIT_S if self._has_met_standby else None
        self._failed, self._has_met_standby = 0, False
        return self._backoff.next_s(0 if is_standby else delay_s, cap_s=cap_s)


def is_refusal_of_standby(error: Exception) -> bool:
    """Whether a router refused a call because another one owns the log."""
    return isinstance(error, Refused) and error.code == catalogue.ROUTER_STANDBY.code


def _parse(text: str) -> list[str]:
    routers = [each.strip() for each in text.split(",")]
    if len(routers) > MAX_ROUTERS:
        raise ValueError(f"A list of routers has at most {MAX_ROUTERS}; this one has {len(routers)}")
    if len(routers) > 1 and not all(routers):
        raise ValueError(f"A list of routers has an empty address: {text!r}")
    if len({each.lower() for each in routers}) < len(routers):
        raise ValueError(f"A list of routers names one twice: {text!r}")
    return routers
