"""LogFenced writes on a real server: whatever breaks, each is committed once or refused, and never both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
from trunkline_router.log.interface import LogFenced, LogUnavailable
from trunkline_router.log.postgres import fence, silence_watch
from trunkline_router.log.postgres.fence import FencedWriter

from tests.router.log.postgres.owned import NOTE, NOTED, fenced_writer, note, notes, query, until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.postgres import PostgresServer, shared_server

END_SESSION = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
WAITS = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
FENCE = "UPDATE routers SET alive = false WHERE incarnation = $1"


@pytest.fixture
def proxy(postgres_schema: str) -> Iterator[FaultProxy]:
    with FaultProxy(shared_server().address) as one:
        yield one


def through(proxy: FaultProxy, dsn: str) -> str:
    return dsn.replace(shared_server().address, proxy.address)


async def test_write_commits_and_returns_its_result(postgres_schema: str) -> None:
    async with fenced_writer(postgres_schema) as writer:
        assert await note(writer, "one") == "one"
        assert await writer.write("", "NULL") is None
        assert await writer.write("", """jsonb_build_object('a', ARRAY[1, $3::bigint])""", 2) == {"a": [1, 2]}
        assert [row["action"] for row in await writer.read("SELECT action FROM audit")] == ["one"]
    assert await notes(postgres_schema) == ["one"]


async def test_fenced_writer_commits_nothing(postgres_schema: str) -> None:
    async with fenced_writer(postgres_schema) as writer:
        await note(writer, "before")
        await query(postgres_schema, FENCE, writer.incarnation)
        told: list[str] = []
        writer.on_fenced = lambda: told.append("fenced")
        for _ in range(2):
            with pytest.raises(LogFenced):
                await note(writer, "after")
        assert told == ["fenced"]
        with pytest.raises(LogFenced):
            await writer.transaction(lambda _: pytest.fail("runs behind a closed fence"))
    assert await notes(postgres_schema) == ["before"]


async def test_transaction_commits_all_or_nothing(postgres_schema: str) -> None:
    insert = "INSERT INTO cancelled_messages VALUES ($1, 1, 1)"

    async def two(connection: asyncpg.Connection[Any]) -> Any:
        await connection.execute(insert, 1)
        await connection.execute(insert, 2)
        return {"rows": 2}

    async with fenced_writer(postgres_schema) as writer:
        assert await writer.transaction(two) == {"rows": 2}
        with pytest.raises(LogUnavailable, match="cancelled_messages_pkey"):
            await writer.transaction(two)
        assert await note(writer, "goes on") == "goes on"
        assert len(await writer.read("SELECT FROM cancelled_messages")) == 2


@pytest.mark.parametrize("forward", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("kind", ["write", "transaction"])
async def test_commit_happens_once_if_the_connection_breaks(
    postgres_schema: str, proxy: FaultProxy, kind: str, forward: bool
) -> None:
    """The request is lost, or the answer."""

    async def insert(connection: asyncpg.Connection[Any]) -> Any:
        await connection.execute("INSERT INTO cancelled_messages VALUES ($1, 1, 1)", rows.pop())
        return "done"

    rows = [3, 2, 1]
    async with fenced_writer(through(proxy, postgres_schema)) as writer:
        await note(writer, "prepared")
        if kind == "write":
            proxy.cut_at_request(b"the one", forward=forward)
            assert await note(writer, "the one") == "the one"
            assert await notes(postgres_schema) == ["prepared", "the one"]
        else:
            proxy.cut_at_request(b"COMMIT", forward=forward)
            assert await writer.transaction(insert) == "done"
            found = await query(postgres_schema, "SELECT topic_id FROM cancelled_messages")
            assert [row[0] for row in found] == ([1] if forward else [2])
        assert not proxy.awaits_request
        assert await note(writer, "next") == "next"


@pytest.mark.parametrize("forward", [True, False], ids=["committed", "lost"])
async def test_outcome_is_found_behind_a_closed_fence(
    postgres_schema: str, proxy: FaultProxy, forward: bool
) -> None:
    """Another router takes over before this one can ask."""
    async with fenced_writer(through(proxy, postgres_schema)) as writer:
        await note(writer, "prepared")
        may_connect = asyncio.Event()
        reconnect = writer._connector.reconnect

        async def reconnect_later() -> Any:
            await may_connect.wait()
            return await reconnect()

        writer._connector.reconnect = reconnect_later  # type: ignore[method-assign]
        proxy.cut_at_request(b"the one", forward=forward)
        writing = asyncio.create_task(note(writer, "the one"))
        if forward:
            await until(lambda: query(postgres_schema, "SELECT FROM audit WHERE action = 'the one'"))
        else:
            await until(lambda: asyncio.sleep(0, not proxy.awaits_request))
        await query(postgres_schema, FENCE, writer.incarnation)
        may_connect.set()
        if forward:
            assert await writing == "the one"
        else:
            with pytest.raises(LogFenced):
                await writing
        with pytest.raises(LogFenced):
            await note(writer, "next")


@asynccontextmanager
async def held_up(writer: FencedWriter, dsn: str, text: str) -> AsyncIterator[asyncio.Task[Any]]:
    """Begin to commit a note, which waits in the server until the block ends."""
    holder = await asyncpg.connect(dsn)
    try:
        async with holder.transaction():
            await holder.fetch("SELECT FROM routers FOR UPDATE")
            writing = asyncio.create_task(note(writer, text))
            await until(lambda: query(dsn, WAITS))
            yield writing
    finally:
        await holder.close()


async def test_statement_under_way_in_a_broken_session_is_met_by_the_next(postgres_schema: str) -> None:
    """The connection breaks while the server still waits with the commit."""
    async with fenced_writer(postgres_schema) as writer:
        await note(writer, "prepared")
        async with held_up(writer, postgres_schema, "the one") as writing:
            assert writer._connection is not None
            writer._connection.terminate()
            await until(lambda: query(postgres_schema, f"{WAITS} HAVING count(*) = 2"))
        assert await asyncio.wait_for(writing, patient(10)) == "the one"
        assert await note(writer, "next") == "next"
    assert await notes(postgres_schema) == ["prepared", "the one", "next"]


async def test_cancelled_write_may_commit_and_the_writer_goes_on(postgres_schema: str) -> None:
    async with fenced_writer(postgres_schema) as writer:
        await note(writer, "prepared")
        async with held_up(writer, postgres_schema, "cancelled") as writing:
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            following = asyncio.create_task(note(writer, "next"))
        assert await asyncio.wait_for(following, patient(10)) == "next"
    assert await notes(postgres_schema) == ["prepared", "cancelled", "next"]


async def test_refused_statement_is_certain_and_keeps_the_connection(postgres_schema: str) -> None:
    async with fenced_writer(postgres_schema) as writer:
        connection = writer._connection
        with pytest.raises(LogUnavailable, match="not valid") as caught:
            await writer.write(NOTE, "to_jsonb(1 / $4::int)", "refused", 0)
        assert "\n" not in str(caught.value)
        # Wrong arguments are found before anything is sent.
        with pytest.raises(LogUnavailable):
            await writer.write(NOTE, NOTED, 5)
        with pytest.raises(LogUnavailable):
            await writer.read("SELECT FROM nothing")
        assert await note(writer, "next") == "next"
        assert writer._connection is connection
    assert await notes(postgres_schema) == ["next"]


async def test_writes_survive_the_end_of_their_sessions(postgres_schema: str) -> None:
    """A person ends the writer's sessions at random moments: nothing is lost, doubled or refused."""
    slowly = f"(SELECT {NOTED} FROM pg_sleep(0.02))"
    async with fenced_writer(postgres_schema) as writer:
        killer = await asyncpg.connect(postgres_schema)
        name = f"trunkline {writer.incarnation}"

        async def kill() -> None:
            while True:
                await asyncio.sleep(random.uniform(0.02, 0.1))
                await killer.fetch(END_SESSION, name)

        killing = asyncio.create_task(kill())
        async with asyncio.timeout(patient(60)):
            acked = [await writer.write(NOTE, slowly, f"{number}") for number in range(20)]
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
        await killer.close()
        # Some numbers were taken so that their commits could not happen.
        assert await writer.read("SELECT FROM commits WHERE void")
    assert acked == await notes(postgres_schema) == [f"{number}" for number in range(20)]


async def test_lost_answer_of_a_silent_connection_is_noticed(
    postgres_schema: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing arrives any more, and nobody closes the connection. A long statement is not ended."""
    monkeypatch.setattr(silence_watch, "SILENCE_S", 0.05)
    async with fenced_writer(postgres_schema, first=through(proxy, postgres_schema)) as writer:
        assert await writer.write("", "to_jsonb(pg_sleep(0.5) IS NULL)") is False
        assert proxy.connections == 1
        proxy.stall("to_client")
        assert await asyncio.wait_for(note(writer, "0"), patient(10)) == "0"
    assert await notes(postgres_schema) == ["0"]


async def test_close_ends_a_write_that_cannot_reach_the_database(
    postgres_schema: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "CLOSE_PATIENCE_S", 0.05)
    async with fenced_writer(through(proxy, postgres_schema)) as writer:
        proxy.refuse()
        writing = asyncio.create_task(note(writer, "never"))
        await asyncio.sleep(0)
        await writer.close()
        with pytest.raises(LogUnavailable, match="closed"):
            await writing
        for call in (note(writer, "closed"), writer.read("SELECT 1")):
            with pytest.raises(LogUnavailable, match="closed"):
                await call


async def test_writes_survive_crashes_of_the_server() -> None:
    with PostgresServer.create() as server:
        dsn = server.fresh_schema()
        async with fenced_writer(dsn) as writer:
            acked: list[str] = []

            async def write() -> None:
                while True:
                    acked.append(await note(writer, f"{len(acked)}"))

            writing = asyncio.create_task(write())
            for _ in range(3):
                before = len(acked)
                await until_longer(acked, before + 3)
                await asyncio.to_thread(server.crash)
                await asyncio.to_thread(server.start)
            await until_longer(acked, len(acked) + 1)
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
        stored = await notes(dsn)
    # The one that was cancelled may be stored.
    assert stored[: len(acked)] == acked
    assert len(stored) <= len(acked) + 1


async def until_longer(acked: list[str], length: int) -> None:
    async def is_longer() -> bool:
        return len(acked) >= length

    await until(is_longer)
