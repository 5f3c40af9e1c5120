"""The token that a client presents, and its refresh before it expires."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from trunkline_client.clock import Clock

TokenSource: TypeAlias = str | Callable[[], Awaitable[str]]
"""A token, or a function that returns a fresh one each time it is called."""

#: A token is refreshed after this share of its remaining lifetime,
_LIFETIME_SHARE = 0.8
#: but at least this long before its end, or halfway for shorter lifetimes,
_MARGIN_S = 5.0
#: and not more often than this.
_MIN_DELAY_S = 1.0

log = logging.getLogger("trunkline_client")


def refresh_delay_s(remaining_s: float) -> float | None:
    """When to refresh a token with this much lifetime left; None for not at all.

    The edge has just accepted the token, so a clock by which it has expired is wrong.
    """
    if remaining_s <= 0:
        return None
    return max(min(_LIFETIME_SHARE * remaining_s, remaining_s - _MARGIN_S), remaining_s / 2, _MIN_DELAY_S)


class TokenRefresher:
    """Gets a token for each connection, and a fresh one in time before it expires.

    `present(token)` presents it on the current connection. Getting a token may take `timeout_s`.
    """

    def __init__(
        self, source: TokenSource, clock: Clock, timeout_s: float, present: Callable[[str], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._timeout_s = timeout_s
        self._present = present
        self._expires_at_s: float | None = None
        self._expiry_known = asyncio.Event()

    @property
    def can_refresh(self) -> bool:
        """Whether another token can be had."""
        return not isinstance(self._source, str)

    async def get_token(self) -> str:
        """Returns the token to present now. Raises TimeoutError, and whatever the source raises."""
        if isinstance(self._source, str):
            return self._source
        async with asyncio.timeout(self._timeout_s):
            return await self._source()

    def reset(self) -> None:
        """Forgets the expiry: a new connection is being made."""
        self._expiry_known.clear()

    def set_expiry(self, at_s: float | None) -> None:
        """Records when the token expires that was presented last, in seconds since 1970."""
        self._expires_at_s = at_s
        self._expiry_known.set()

    async def run(self) -> None:
        """Presents a fresh token whenever one is due; if the edge rejects it, waits for the next expiry."""
        while self.can_refresh:
            await self._expiry_known.wait()
            self._expiry_known.clear()
            if self._expires_at_s is None:
                continue
            delay_s = refresh_delay_s(self._expires_at_s - self._clock.now_s())
            if delay_s is None:
                continue
            await self._clock.sleep(delay_s)
            try:
                self._present(await self.get_token())
            except Exception as error:
                log.warning("cannot get a fresh token: %r", error)
                self._expiry_known.set()
