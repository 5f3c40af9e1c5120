"""The interface by which routers agree on which one of them owns a log: one at a time may write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from trunkline_router.log.interface import Log


class Lease(Protocol):
    """The time for which this process owns a log."""

    def is_valid(self) -> bool:
        """Return whether the log is owned now, by this machine's clock.

        While False, another router may own it, so that nothing may be sent that another router's commits
        could contradict. It may become True again.
        """

    async def lost(self) -> str:
        """Wait until another router owns the log, and return how that was noticed, in one line.

        Never returns if that cannot happen. Raises what ended the renewal of the lease, which is a bug.
        """

    async def release(self) -> None:
        """Let another router own the log at once; call after the log was closed. Never raises."""


class OwnedLog(NamedTuple):
    """A log that this process owns."""

    log: Log
    lease: Lease


class LogDatabase(Protocol):
    """Storage of one log, which one router at a time owns."""

    def describe(self) -> str:
        """Return where the log is, for people; without passwords."""

    async def acquire(self, must_wait: Callable[[], None]) -> OwnedLog:
        """Wait until no other router owns the log, then own it.

        Calls `must_wait` once another router is found to own it, or the storage cannot be reached. Each call
        begins a new ownership, and the log knows nothing of former ones. When cancelled, nothing is owned.
        Raises StartError for what time does not heal.
        """

    async def close(self) -> None:
        """Release what is open; no log may be in use."""
