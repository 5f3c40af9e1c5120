"""The token that a client shows, and when it gets another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from trunkline_client.clock import Clock

#: A token, or what gives a fresh one each time it is called.
TokenSource: TypeAlias = str | Callable[[], Awaitable[str]]

#: Of what is left of a token's life, this much passes before another one is shown,
_PART = 0.8
#: so that there is this much left at least; but at most half of it, for tokens that live shortly,
_MARGIN_S = 5.0
#: and not more often than that.
_AT_LEAST_S = 1.0

log = logging.getLogger("trunkline_client")


def refresh_delay_s(left_s: float) -> float | None:
    """When to show another token, where this much is left of the present one; None for not at all.

    The edge has just taken the present one: a clock that says that it has expired is wrong.
    """
    if left_s <= 0:
        return None
    return max(min(_PART * left_s, left_s - _MARGIN_S), left_s / 2, _AT_LEAST_S)


class TokenRefresher:
    """Gets a token for each connection, and another one in good time before that expires.

    `show` shows it on the present connection. Getting one may take `timeout_s`.
    """

    def __init__(
        self, token: TokenSource, clock: Clock, timeout_s: float, show: Callable[[str], None]
    ) -> None:
        self._token = token
        self._clock = clock
        self._timeout_s = timeout_s
        self._show = show
        self._expires_at_s: float | None = None
        self._told = asyncio.Event()

    @property
    def is_possible(self) -> bool:
        """Whether there is ever another token."""
        return not isinstance(self._token, str)

    async def token(self) -> str:
        """The token to show now. Raises whatever getting it raises, and TimeoutError."""
        if isinstance(self._token, str):
            return self._token
        async with asyncio.timeout(self._timeout_s):
            return await self._token()

    def begin(self) -> None:
        """Another connection is being made, of which no expiry is known."""
        self._told.clear()

    def expires(self, at_s: float | None) -> None:
        """The edge has told when the token expires that it was shown last, in seconds since 1970."""
        self._expires_at_s = at_s
        self._told.set()

    async def run(self) -> None:
        """Shows another token whenever it is time to; one that is refused ends that."""
        while self.is_possible:
            await self._told.wait()
            self._told.clear()
            if self._expires_at_s is None:
                continue
            wait_s = refresh_delay_s(self._expires_at_s - self._clock.now_s())
            if wait_s is None:
                continue
            await self._clock.sleep(wait_s)
            try:
                self._show(await self.token())
            except Exception as problem:
                log.warning("no other token could be had: %r", problem)
                self._told.set()
