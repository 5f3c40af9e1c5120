"""Cache of JWK Sets, fetched in the background and on demand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from trunkline_runtime.redacted_url import redacted_url

from trunkline_edge.auth.key_set import KeySet, read_jwk_set

_log = structlog.get_logger()

#: Between the starts of two fetches of a set; doubled by each consecutive failure, up to the last.
COOLDOWN_S = 10.0
LAST_COOLDOWN_S = 300.0

#: Average age at which a set is fetched again; jitter spreads the fetches of many edges and sets.
REFRESH_S = 300.0
_JITTER = 0.2

#: Fetches a URL. May raise anything; the text of a FetchFailed is safe to log.
Fetch = Callable[[str], Awaitable[bytes]]


class FetchFailed(Exception):
    """A JWK Set could not be fetched; the text says why and contains no secret."""


class _CachedKeySet:
    """One JWK Set with the state of its fetches."""

    __slots__ = ("cooldown_until", "due_at", "failures", "fetching", "keys")

    def __init__(self, now: float) -> None:
        self.keys = KeySet()
        self.fetching: asyncio.Task[None] | None = None
        self.failures = 0
        self.cooldown_until = now
        self.due_at = now


class JwksCache:
    """The JWK Sets in use, by URL. `clock` is monotonic.

    At most one task fetches a set at a time, and no more often than once per cooldown. If a fetch fails, the
    keys known before stay. `run` keeps all sets in use fresh.
    """

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._sets: dict[str, _CachedKeySet] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()

    def use(self, urls: set[str]) -> None:
        """Set the URLs in use; `run` fetches the new ones soon, and the others are dropped."""
        for url in self._sets.keys() - urls:
            del self._sets[url]
        for url in urls - self._sets.keys():
            self._sets[url] = _CachedKeySet(self._clock())
        self._woken.set()

    def keys(self, url: str) -> KeySet:
        """The keys known now; empty before the first fetch, and for a URL not in use."""
        cached = self._sets.get(url)
        return cached.keys if cached else KeySet()

    async def refresh(self, url: str) -> KeySet:
        """The keys after the current fetch, or after a new one if the cooldown has passed.

        Within the cooldown it returns the known keys at once. A failed fetch raises nothing. Cancelling a
        caller does not cancel the fetch, which others may await.
        """
        cached = self._sets.get(url)
        if cached is None:
            return KeySet()
        if self._clock() >= cached.cooldown_until:
            self._start_fetch(url, cached)
        if cached.fetching is not None:
            await asyncio.wait([cached.fetching])
        return cached.keys

    def due(self, now: float) -> list[str]:
        """The URLs to fetch now."""
        return [url for url, each in self._sets.items() if each.fetching is None and each.due_at <= now]

    async def run(self) -> None:
        """Keep all sets in use fresh until cancelled."""
        while True:
            self._woken.clear()
            now = self._clock()
            for url in self.due(now):
                self._start_fetch(url, self._sets[url])
            due = [each.due_at for each in self._sets.values() if each.fetching is None]
            timeout_s = max(0.0, min(due) - now) if due else None
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()

    async def aclose(self) -> None:
        """Cancel the fetches; callers awaiting them get the known keys."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_fetch(self, url: str, cached: _CachedKeySet) -> None:
        """Start a fetch, unless one is running."""
        if cached.fetching is not None:
            return
        cached.cooldown_until = self._clock() + COOLDOWN_S
        cached.fetching = asyncio.get_running_loop().create_task(self._fetch_set(url, cached))
        self._tasks.add(cached.fetching)
        cached.fetching.add_done_callback(self._tasks.discard)

    async def _fetch_set(self, url: str, cached: _CachedKeySet) -> None:
        began = self._clock()
        try:
            cached.keys = read_jwk_set(await self._fetch(url))
        except Exception as error:
            # The text of another exception may contain the URL and its secrets.
            is_safe = isinstance(error, FetchFailed | ValueError)
            self._record_failure(url, cached, began, str(error) if is_safe else type(error).__name__)
        else:
            cached.failures = 0
            cached.due_at = began + REFRESH_S * random.uniform(1 - _JITTER, 1 + _JITTER)
        finally:
            cached.fetching = None
            self._woken.set()

    def _record_failure(self, url: str, cached: _CachedKeySet, began: float, problem: str) -> None:
        cached.failures = min(cached.failures + 1, 30)
        cooldown_s = min(LAST_COOLDOWN_S, COOLDOWN_S * 2**cached.failures)
        cached.due_at = cached.cooldown_until = began + cooldown_s
        _log.warning(
            "a JWK Set could not be fetched",
            url=redacted_url(url),
            problem=problem,
            retry_in_s=round(cooldown_s),
        )

    def __repr__(self) -> str:
        return f"<JwksCache of {len(self._sets)} sets, {len(self._tasks)} being fetched>"
