"""JWK Sets that tenants' keys are read from, kept fresh."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import structlog

from trunkline_edge.auth.key_set import KeySet, of_jwk_set

_log = structlog.get_logger()

#: Between the beginnings of two fetches of a set; doubled by each fetch in a row that fails.
COOLDOWN_S = 10.0
LAST_COOLDOWN_S = 300.0

#: How old a set gets, on average: fetches of many edges and sets spread themselves over time.
REFRESH_S = 300.0
_JITTER = 0.2

#: Reads what is at a URL. Raises anything where it cannot; FetchFailed with a text that may be logged.
Fetch = Callable[[str], Awaitable[bytes]]


class FetchFailed(Exception):
    """A JWK Set could not be read; the text says why, and shows nothing secret."""


class _CachedKeySet:
    """One JWK Set, and when it may and is to be fetched again."""

    __slots__ = ("due_at", "failures", "fetching", "keys", "rests_until")

    def __init__(self, now: float) -> None:
        self.keys = KeySet()
        self.fetching: asyncio.Task[None] | None = None
        self.failures = 0
        self.rests_until = now
        self.due_at = now


class JwksCache:
    """The JWK Sets in use, by URL. `clock` is monotonic.

    A set is fetched by one task at a time, and not twice within its cooldown, whoever asks for it. Where that
    fails, what was known stays. `run` keeps all sets in use fresh.
    """

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._sets: dict[str, _CachedKeySet] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()

    def use(self, urls: set[str]) -> None:
        """These are in use, from now on, and no others; `run` soon fetches those that are new."""
        for url in self._sets.keys() - urls:
            del self._sets[url]
        for url in urls - self._sets.keys():
            self._sets[url] = _CachedKeySet(self._clock())
        self._woken.set()

    def keys(self, url: str) -> KeySet:
        """What is known; nothing before the first fetch, or where it is not in use."""
        found = self._sets.get(url)
        return found.keys if found else KeySet()

    async def refresh(self, url: str) -> KeySet:
        """The keys after the fetch that is under way, or a new one.

        Where it is too early for that, those that are known, at once. Never raises for a fetch that fails. A
        caller that is cancelled leaves the fetch to the others.
        """
        found = self._sets.get(url)
        if found is None:
            return KeySet()
        if self._clock() >= found.rests_until:
            self._begin(url, found)
        if found.fetching is not None:
            await asyncio.wait([found.fetching])
        return found.keys

    def due(self, now: float) -> list[str]:
        """Those that are to be fetched now."""
        return [url for url, each in self._sets.items() if each.fetching is None and each.due_at <= now]

    async def run(self) -> None:
        """Keep all sets in use fresh, until cancelled."""
        while True:
            self._woken.clear()
            now = self._clock()
            for url in self.due(now):
                self._begin(url, self._sets[url])
            waiting = [each.due_at for each in self._sets.values() if each.fetching is None]
            timeout_s = max(0.0, min(waiting) - now) if waiting else None
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()

    async def aclose(self) -> None:
        """Ends the fetches under way; those who wait for them get what is known."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, url: str, found: _CachedKeySet) -> None:
        """Fetch it, unless that is under way."""
        if found.fetching is not None:
            return
        found.rests_until = self._clock() + COOLDOWN_S
        found.fetching = asyncio.get_running_loop().create_task(self._read(url, found))
        self._tasks.add(found.fetching)
        found.fetching.add_done_callback(self._tasks.discard)

    async def _read(self, url: str, found: _CachedKeySet) -> None:
        began = self._clock()
        try:
            found.keys = of_jwk_set(await self._fetch(url))
        except Exception as error:
            # Others' words may hold the URL, with what is secret in it.
            known = isinstance(error, FetchFailed | ValueError)
            self._failed(url, found, began, str(error) if known else type(error).__name__)
        else:
            found.failures = 0
            found.due_at = began + REFRESH_S * random.uniform(1 - _JITTER, 1 + _JITTER)
        finally:
            found.fetching = None
            self._woken.set()

    def _failed(self, url: str, found: _CachedKeySet, began: float, problem: str) -> None:
        found.failures = min(found.failures + 1, 30)
        cooldown_s = min(LAST_COOLDOWN_S, COOLDOWN_S * 2**found.failures)
        found.due_at = found.rests_until = began + cooldown_s
        _log.warning(
            "a JWK Set could not be read", url=shown(url), problem=problem, again_in_s=round(cooldown_s)
        )

    def __repr__(self) -> str:
        return f"<JwksCache of {len(self._sets)} sets, {len(self._tasks)} being fetched>"


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
    except ValueError:
        return "not a URL"
