"""The cache of JWK Sets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from trunkline_edge.auth.jwks import COOLDOWN_S, LAST_COOLDOWN_S, REFRESH_S, FetchFailed, JwksCache

from tests.edge.auth.token_factory import PRIVATE
from tests.support.jwks_server import PATIENCE_S
from tests.support.signing import public

URL = "https://id.example/keys"
OTHER = "https://other.example/keys"


def body(*kids: str) -> bytes:
    """A JWK Set with keys of these names."""
    return json.dumps(
        {"keys": [{**json.loads(public(PRIVATE["ES256"])), "kid": kid} for kid in kids]}
    ).encode()


class World:
    """A cache with a manual clock, and fetches that end on command."""

    def __init__(self) -> None:
        self.now = 1000.0
        #: URL and outcome of every fetch.
        self.fetches: list[tuple[str, asyncio.Future[bytes]]] = []
        self.begun = asyncio.Event()
        self.cache = JwksCache(self.fetch, lambda: self.now)
        self.cache.use({URL})

    async def fetch(self, url: str) -> bytes:
        end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.fetches.append((url, end))
        self.begun.set()
        return await end

    async def refreshing(self, count: int = 1) -> list[asyncio.Task[set[str]]]:
        """Start this many concurrent refreshes, all waiting."""
        tasks = [asyncio.create_task(self.kids()) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    async def kids(self) -> set[str]:
        """The key names after a refresh."""
        return {key.kid for key in await self.cache.refresh(URL)}

    async def ended(self, result: bytes | Exception, *, url: str = URL) -> set[str]:
        """Refresh, end the fetch, and return the key names."""
        before = len(self.fetches)
        (task,) = await self.refreshing()
        assert len(self.fetches) == before + 1
        self.end(result)
        return await asyncio.wait_for(task, PATIENCE_S)

    def end(self, result: bytes | Exception, number: int = -1) -> None:
        """End a fetch, by default the latest."""
        end = self.fetches[number][1]
        if isinstance(result, bytes):
            end.set_result(result)
        else:
            end.set_exception(result)

    def known(self) -> set[str]:
        return {key.kid for key in self.cache.keys(URL)}


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


async def test_no_keys_are_known_before_the_first_fetch_or_of_a_set_not_in_use() -> None:
    world = World()
    assert world.known() == set()
    assert len(world.cache.keys(OTHER)) == 0
    assert len(await world.cache.refresh(OTHER)) == 0
    assert world.fetches == []
    assert await world.ended(body("a")) == {"a"}
    assert world.known() == {"a"}


async def test_all_who_ask_at_the_same_time_wait_for_one_fetch() -> None:
    world = World()
    tasks = await world.refreshing(5)
    assert len(world.fetches) == 1
    assert not any(task.done() for task in tasks)
    world.end(body("a"))
    assert await asyncio.gather(*tasks) == [{"a"}] * 5
    assert "1 sets, 0 being fetched" in repr(world.cache)


async def test_one_who_gives_up_leaves_the_fetch_to_the_others() -> None:
    world = World()
    first, second = await world.refreshing(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    world.end(body("a"))
    assert await asyncio.wait_for(second, PATIENCE_S) == {"a"}


async def test_a_fetch_goes_on_when_all_have_given_up() -> None:
    world = World()
    (task,) = await world.refreshing()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    late = await world.refreshing()
    world.end(body("a"))
    assert await asyncio.wait_for(late[0], PATIENCE_S) == {"a"}
    assert len(world.fetches) == 1


async def test_within_the_cooldown_the_known_keys_are_returned_at_once() -> None:
    world = World()
    await world.refreshing()
    # The cooldown counts from the start of a fetch.
    world.now += COOLDOWN_S - 1
    world.end(body("a"))
    assert await world.kids() == {"a"}
    world.now += 0.9
    assert await world.kids() == {"a"}
    assert len(world.fetches) == 1
    world.now += 0.1
    assert await world.ended(body("b")) == {"b"}


async def test_a_failed_fetch_keeps_the_known_keys_and_logs_once(logged: list[EventDict]) -> None:
    world = World()
    await world.ended(body("a"))
    world.now += COOLDOWN_S
    assert await world.ended(FetchFailed("the response has status 500")) == {"a"}
    (line,) = logged
    assert line["problem"] == "the response has status 500"
    assert line["url"] == URL
    assert line["retry_in_s"] == 20


async def test_each_fetch_that_fails_doubles_the_cooldown_until_one_succeeds(logged: list[EventDict]) -> None:
    world = World()
    waits = []
    for _ in range(8):
        began = world.now
        await world.ended(FetchFailed("no"))
        while not world.cache.due(world.now):
            assert await world.kids() == set()
            world.now += 5
        waits.append(world.now - began)
    assert waits == [20, 40, 80, 160, *[LAST_COOLDOWN_S] * 4]
    await world.ended(body("a"))
    world.now += COOLDOWN_S
    await world.ended(FetchFailed("no"))
    assert logged[-1]["retry_in_s"] == 20
    assert len(logged) == 9


@pytest.mark.parametrize("wrong", [b"<html>", b"{}", b'{"keys":1}', b" " * 300_000])
async def test_a_malformed_set_is_a_failed_fetch(wrong: bytes, logged: list[EventDict]) -> None:
    world = World()
    await world.ended(body("a"))
    world.now += COOLDOWN_S
    assert await world.ended(wrong) == {"a"}
    assert "the JWK Set" in logged[0]["problem"]


async def test_no_words_of_others_and_no_password_are_logged(logged: list[EventDict]) -> None:
    world = World()
    secret = "https://user:pass%20word@id.example:8443/keys?key=s3cret#s3cret"
    world.cache.use({secret})
    task = asyncio.create_task(world.cache.refresh(secret))
    await world.begun.wait()
    world.end(OSError(f"could not read {secret}"))
    await task
    assert logged[0]["url"] == "https://id.example:8443/keys"
    assert logged[0]["problem"] == "OSError"
    assert "s3cret" not in str(logged)


async def test_keys_that_a_set_no_longer_has_are_forgotten() -> None:
    world = World()
    await world.ended(body("a", "b"))
    world.now += COOLDOWN_S
    assert await world.ended(body("b")) == {"b"}


async def test_a_set_is_due_at_once_and_then_every_few_minutes() -> None:
    world = World()
    assert world.cache.due(world.now) == [URL]
    (task,) = await world.refreshing()
    assert world.cache.due(world.now) == []
    world.end(body("a"))
    await task
    assert world.cache.due(world.now + REFRESH_S * 0.79) == []
    assert world.cache.due(world.now + REFRESH_S * 1.21) == [URL]


async def test_a_set_no_longer_in_use_is_dropped_even_during_a_fetch() -> None:
    world = World()
    await world.ended(body("a"))
    world.now += COOLDOWN_S
    (task,) = await world.refreshing()
    world.cache.use({OTHER})
    assert world.known() == set()
    assert world.cache.due(world.now + 10_000) == [OTHER]
    world.end(body("b"))
    await task
    assert world.known() == set()


async def test_a_set_that_stays_in_use_stays_known() -> None:
    world = World()
    await world.ended(body("a"))
    world.cache.use({URL, OTHER})
    assert world.known() == {"a"}
    assert world.cache.due(world.now) == [OTHER]


async def test_run_fetches_new_and_due_sets() -> None:
    world = World()
    running = asyncio.create_task(world.cache.run())

    async def begun(url: str) -> None:
        await asyncio.wait_for(world.begun.wait(), PATIENCE_S)
        world.begun.clear()
        assert world.fetches[-1][0] == url

    await begun(URL)
    world.cache.use({URL, OTHER})
    await begun(OTHER)
    world.end(body("a"), 0)
    world.end(FetchFailed("no"), 1)
    assert await world.kids() == {"a"}
    world.now += REFRESH_S * 1.21
    # `run` checks the due sets when it wakes.
    world.cache.use({URL})
    await begun(URL)
    assert len(world.fetches) == 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.cache.aclose()
    assert world.fetches[-1][1].cancelled()


async def test_run_looks_again_by_itself_when_a_set_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline_edge.auth.jwks.REFRESH_S", 0.02)
    fetched = asyncio.Queue[str]()

    async def fetch(url: str) -> bytes:
        fetched.put_nowait(url)
        return body("a")

    cache = JwksCache(fetch, asyncio.get_running_loop().time)
    cache.use({URL})
    running = asyncio.create_task(cache.run())
    for _ in range(3):
        assert await asyncio.wait_for(fetched.get(), PATIENCE_S) == URL
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_closing_cancels_a_fetch_and_waiters_get_the_known_keys() -> None:
    world = World()
    await world.ended(body("a"))
    world.now += COOLDOWN_S
    (task,) = await world.refreshing()
    await world.cache.aclose()
    assert await asyncio.wait_for(task, PATIENCE_S) == {"a"}
