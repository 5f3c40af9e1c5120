"""Servers that let nobody in, refuse statements, or go away: one clear line each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from trunkline_router.log.interface import LogDamaged, LogUnavailable
from trunkline_router.log.postgres import read_pool
from trunkline_router.log.postgres.connector import ConnectFailed, Connector
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.server_errors import explain, refused

from tests.router.log.postgres.owned import fenced_writer, note, notes, until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.postgres import DATABASE, PASSWORD, ROLE, PostgresServer, shared_server


async def failure(dsn: str) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as caught:
        await Connector(Dsn.parse(dsn)).connect()
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    return caught.value


async def test_reasons_that_stay_are_told_from_those_that_pass() -> None:
    server = shared_server()
    dsn = server.dsn()
    closed = "127.0.0.1:1"
    unknown = "no-such-host.invalid"
    cases = [
        (
            dsn.replace(PASSWORD, "wrong"),
            True,
            f"{server.address}: the password or the user is wrong: pass",
        ),
        (dsn.replace(f"{ROLE}:", "nobody:"), True, "the password or the user is wrong"),
        (dsn.removesuffix(DATABASE) + "missing", True, 'the database does not exist: database "missing"'),
        (f"{dsn}?no_such_setting=1", True, "no_such_setting"),
        (f"{dsn}?sslmode=sometimes", True, "sslmode"),
        (f"{dsn}?sslmode=require", True, "the server has no TLS"),
        (server.dsn(address=closed), False, f"{closed}: connection refused"),
        (server.dsn(address=unknown), False, f"{unknown}:5432: the host is unknown"),
        # The other server may become reachable.
        (server.dsn(address=f"{closed},{server.address}").replace(PASSWORD, "wrong"), False, "; "),
    ]
    for url, is_permanent, words in cases:
        found = await failure(url)
        assert words in str(found)
        assert found.is_permanent is is_permanent, found


async def test_replicas_are_refused_unless_another_server_is_the_primary() -> None:
    with PostgresServer.create() as server:
        standby = server.base_backup()
        found = await failure(standby.dsn())
        assert str(found) == f"{standby.address}: the server is a replica, which is read-only"
        assert found.is_permanent
        both = Connector(Dsn.parse(standby.dsn(address=f"{standby.address},{server.address}")))
        connection = await both.connect()
        assert not await connection.fetchval("SELECT pg_is_in_recovery()")
        await connection.close()
        await asyncio.to_thread(server.stop, "immediate")
        assert not (await failure(both.dsn.text)).is_permanent


async def test_server_that_never_answers_does_not_hold_up_the_next_one() -> None:
    """After a failover, the former primary's machine may be gone."""
    server = shared_server()
    with FaultProxy(server.address) as proxy:
        proxy.stall()
        for _ in range(2):
            dsn = Dsn.parse(server.dsn(address=f"{proxy.address},{server.address}"))
            connection = await asyncio.wait_for(Connector(dsn).connect(), patient(2))
            await connection.close()
        # The attempts that came too late are ended.
        proxy.resume()
        await until(lambda: asyncio.sleep(0.01, not proxy.connections))


async def test_first_server_is_preferred_and_one_connection_remains() -> None:
    server = shared_server()
    with FaultProxy(server.address) as first, FaultProxy(server.address) as second:
        first.delay(0.2)
        connector = Connector(Dsn.parse(server.dsn(address=f"{first.address},{second.address}")))
        connection = await connector.connect()
        await until(lambda: asyncio.sleep(0.01, first.connections + second.connections == 1))
        assert await connection.fetchval("SELECT 1")
        await connection.close()


async def test_server_without_a_free_connection_is_waited_for(postgres_schema: str) -> None:
    shared_server().execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 1")
    try:
        first = await Connector(Dsn.parse(postgres_schema)).connect()
        found = await failure(postgres_schema)
        assert "no free connection" in str(found)
        assert not found.is_permanent
        waiting = asyncio.create_task(Connector(Dsn.parse(postgres_schema)).reconnect())
        await asyncio.sleep(0)
        await first.close()
        await (await asyncio.wait_for(waiting, patient(10))).close()
    finally:
        shared_server().execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


async def test_settings_of_the_role_do_not_endanger_commits(postgres_schema: str) -> None:
    """Settings in the DSN stay."""
    role = f"ALTER ROLE {ROLE}"
    changes = [
        "SET synchronous_commit = off",
        "SET statement_timeout = '1s'",
        "SET lock_timeout = '2s'",
        "SET default_transaction_isolation = 'serializable'",
    ]
    shared_server().execute(";".join(f"{role} {change}" for change in changes))
    try:
        connection = await Connector(Dsn.parse(f"{postgres_schema}&lock_timeout=3s")).connect()
        names = ("synchronous_commit", "statement_timeout", "lock_timeout", "transaction_isolation")
        found = [await connection.fetchval(f"SHOW {name}") for name in names]
        await connection.close()
    finally:
        shared_server().execute(f"{role} RESET ALL")
    assert found == ["on", "0", "3s", "read committed"]


async def test_statement_timeout_of_the_dsn_refuses_and_the_next_write_goes_on(postgres_schema: str) -> None:
    dsn = f"{postgres_schema}&statement_timeout=200"
    async with fenced_writer(dsn) as writer:
        with pytest.raises(LogUnavailable, match="the server cancelled the statement"):
            await writer.write("", "to_jsonb(pg_sleep(5) IS NULL)")
        assert await note(writer, "next") == "next"
    assert await notes(postgres_schema) == ["next"]


async def test_read_only_database_refuses_until_it_is_writable_again(postgres_schema: str) -> None:
    async with fenced_writer(postgres_schema) as writer:
        await writer.read("SET default_transaction_read_only = on")
        with pytest.raises(LogUnavailable, match="the database is read-only"):
            await note(writer, "refused")
        await writer.read("SET default_transaction_read_only = off")
        assert await note(writer, "next") == "next"
    assert await notes(postgres_schema) == ["next"]


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("53100", "the disk of the database server is full: no space left (SQLSTATE 53100)"),
        ("57014", "the server cancelled the statement: statement_timeout, or a person: no space left"),
        ("40P01", "the server ended a deadlock"),
        ("XX002", "the database server found a damaged index"),
        ("12345", "no space left (SQLSTATE 12345)"),
    ],
)
async def test_statement_that_fails_on_the_server_is_refused_with_its_reason(
    postgres_schema: str, sqlstate: str, words: str
) -> None:
    """A trigger raises what a server raises whose disk is full, and so on."""
    async with fenced_writer(postgres_schema) as writer:
        await writer.read(
            f"""
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE E'no space\nleft' USING ERRCODE = '{sqlstate}'; END$$
            """
        )
        await writer.read("CREATE TRIGGER fail BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION fail()")
        with pytest.raises(LogUnavailable) as caught:
            await note(writer, "refused")
        assert str(caught.value).startswith(f"cannot write the log: {words}")
        assert isinstance(caught.value, LogDamaged) is sqlstate.startswith("XX")
        await writer.read("DROP TRIGGER fail ON audit")
        assert await note(writer, "next") == "next"
    assert await notes(postgres_schema) == ["next"]


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(shared_server().address) as one:
        yield one


async def test_reads_outlive_broken_connections_and_short_outages(
    postgres_schema: str, proxy: FaultProxy
) -> None:
    connections = Connections(Connector(Dsn.parse(shared_server().dsn(address=proxy.address))))
    for _ in range(3):
        reads = [asyncio.create_task(connections.fetch("SELECT $1::int AS n", n)) for n in range(9)]
        assert [(await read)[0]["n"] for read in reads] == list(range(9))
        proxy.cut()
    assert proxy.accepted <= 12 + 4
    proxy.refuse()
    reading = asyncio.create_task(connections.fetch("SELECT 1"))
    await until(lambda: asyncio.sleep(0.01, not connections._idle))
    proxy.accept()
    assert await reading
    with pytest.raises(LogUnavailable, match="cannot read the log: a table is missing"):
        await connections.fetch("SELECT FROM missing")
    await connections.close()
    with pytest.raises(LogUnavailable, match="closed"):
        await connections.fetch("SELECT 1")


async def test_reads_are_refused_when_the_database_stays_away(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_pool, "READ_PATIENCE_S", 0.2)
    monkeypatch.setattr(read_pool, "READ_TIMEOUT_S", 0.2)
    connections = Connections(Connector(Dsn.parse(shared_server().dsn(address=proxy.address))), 1)
    await connections.fetch("SELECT 1")
    for fault in (proxy.stall, proxy.refuse):
        fault()
        with pytest.raises(LogUnavailable, match="cannot read the log: "):
            await connections.fetch("SELECT 1")
    proxy.resume()
    proxy.accept()
    await connections.fetch("SELECT 1")
    await connections.close()


async def test_cancelled_read_does_not_confuse_the_next_one(postgres_schema: str) -> None:
    connections = Connections(Connector(Dsn.parse(postgres_schema)), 1)
    for _ in range(3):
        reading = asyncio.create_task(connections.fetch("SELECT pg_sleep(60)"))
        await until(lambda: asyncio.sleep(0.01, connections._free.locked()))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert [row[0] for row in await connections.fetch("SELECT 5")] == [5]
    await connections.close()


def test_explanations_are_one_line_without_values() -> None:
    error = asyncpg.NotNullViolationError("null value\nin column")
    assert explain(error) == "null value in column (SQLSTATE 23502)"
    assert str(refused("read", TimeoutError())) == "cannot read the log: no answer in time"
    assert "secret" not in explain(asyncpg.InvalidTextRepresentationError('invalid input: "secret"'))
