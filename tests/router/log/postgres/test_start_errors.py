"""Databases with which a router does not start: one line that says what to do, without the password."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from trunkline_router.log.engines import open_database
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.postgres.database import PostgresDatabase
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.settings import RouterSettings
from trunkline_runtime.process import StartError

from tests.router.log.engines import append, pending_entry
from tests.router.log.postgres.owned import query, until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.postgres import DATABASE, PASSWORD, ROLE, PostgresServer, shared_server
from tests.support.processes import environment


async def start(dsn: str, data_dir: Path | None = None) -> OwnedLog:
    """Own the log, at once."""
    async with asyncio.timeout(patient(20)):
        return await PostgresDatabase(dsn, data_dir=data_dir, lease_s=1).acquire(lambda: None)


async def stop(owned: OwnedLog) -> None:
    await owned.log.close()
    await owned.lease.release()


async def problem_of(dsn: str, data_dir: Path | None = None) -> str:
    with pytest.raises(StartError) as caught:
        await start(dsn, data_dir)
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    return text


async def test_a_person_must_correct_the_url(postgres_schema: str) -> None:
    for wrong, words in (
        ("mysql://host/log", "TRUNKLINE_DATABASE_URL is not the URL of a PostgreSQL database"),
        (postgres_schema.replace(PASSWORD, "wrong"), "the password or the user is wrong"),
        (
            postgres_schema.replace(f"/{DATABASE}?", "/missing?"),
            'the database does not exist: database "missing"',
        ),
        (postgres_schema.replace("search_path=", "search_path=no_"), "no schema of the search_path no_"),
        (f"{postgres_schema}&default_transaction_read_only=on", "the database is read-only"),
    ):
        assert words in await problem_of(wrong)


async def test_router_exits_with_one_line(postgres_schema: str, tmp_path: Path) -> None:
    given = {
        "TRUNKLINE_DATABASE_URL": postgres_schema.replace(PASSWORD, "wrong"),
        "TRUNKLINE_OPERATOR_KEY": "operator-key-of-the-test",
        "TRUNKLINE_DATA_DIR": str(tmp_path),
        "TRUNKLINE_ROUTER_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trunkline_router",
        "serve",
        env=environment(given),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), patient(30))
    assert process.returncode == 1
    *_, line = stderr.decode().splitlines()
    assert line.startswith(f"router: {shared_server().address}: the password or the user is wrong: ")
    assert line.endswith(f"TRUNKLINE_DATABASE_URL is {Dsn.parse(postgres_schema).describe()}.")
    assert b"Traceback" not in stderr


async def test_replica_is_refused() -> None:
    with PostgresServer.create() as server:
        standby = server.base_backup()
        assert "the server is a replica, which is read-only" in await problem_of(standby.dsn())


async def test_tables_of_a_newer_version_are_refused_before_anything_is_written(postgres_schema: str) -> None:
    await stop(await start(postgres_schema))
    await query(postgres_schema, "UPDATE installation SET schema_version = 7, usable_since = 7")
    before = await query(postgres_schema, "SELECT * FROM routers ORDER BY 1")
    assert "a newer Trunkline made the tables of the database (version 7)" in await problem_of(
        postgres_schema
    )
    assert await query(postgres_schema, "SELECT * FROM routers ORDER BY 1") == before


async def test_database_of_another_installation_is_refused(tmp_path: Path) -> None:
    first, other = (shared_server().fresh_schema() for _ in range(2))
    await stop(await start(first, tmp_path / "data"))
    await stop(await start(other, tmp_path / "new"))
    assert "the database belongs to the installation" in await problem_of(other, tmp_path / "data")
    await stop(await start(first, tmp_path / "data"))


async def test_router_waits_for_a_server_that_is_away_and_starts_with_it(postgres_schema: str) -> None:
    with FaultProxy(shared_server().address) as proxy:
        proxy.refuse()
        waits: list[None] = []
        dsn = postgres_schema.replace(shared_server().address, proxy.address)
        database = PostgresDatabase(dsn, lease_s=1)
        acquiring = asyncio.create_task(database.acquire(lambda: waits.append(None)))
        await until(lambda: asyncio.sleep(0.01, bool(waits)))
        proxy.accept()
        owned = await asyncio.wait_for(acquiring, patient(20))
        await append(owned.log, pending_entry())
        await stop(owned)


async def test_wrong_password_later_is_waited_out(postgres_schema: str) -> None:
    """Passwords are changed while routers run; only a first start asks for a person."""
    server = shared_server()
    database = PostgresDatabase(postgres_schema, lease_s=1)
    await stop(await database.acquire(lambda: None))
    server.execute(f"ALTER ROLE {ROLE} PASSWORD 'changed'")
    try:
        waits: list[None] = []
        acquiring = asyncio.create_task(database.acquire(lambda: waits.append(None)))
        await until(lambda: asyncio.sleep(0.01, bool(waits)))
        assert not acquiring.done()
    finally:
        server.execute(f"ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'")
    await stop(await asyncio.wait_for(acquiring, patient(20)))


async def test_settings_choose_the_engine(postgres_schema: str, tmp_path: Path) -> None:
    settings = RouterSettings(database_url=postgres_schema, data_dir=tmp_path)
    assert PASSWORD not in repr(settings)
    database = open_database(settings)
    assert database.describe().startswith(f"postgresql://{ROLE}@127.0.0.1")
    assert PASSWORD not in database.describe()
    owned = await database.acquire(lambda: None)
    await stop(owned)
    assert (tmp_path / "installation").read_text().strip()
    assert str(tmp_path) in open_database(RouterSettings(data_dir=tmp_path)).describe()
