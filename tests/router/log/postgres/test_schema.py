"""Installing and migrating the tables, and databases that a router refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.connector import Connection, Connector
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.installation_file import check_installation
from trunkline_router.log.postgres.schema import SCHEMA_VERSION, Migration, prepare_schema
from trunkline_runtime.process import StartError

from tests.support.postgres import DATABASE, ROLE, shared_server

EXPAND = Migration(2, "ALTER TABLE audit ADD COLUMN added integer NOT NULL DEFAULT 0", usable_since=1)
CONTRACT = Migration(3, "ALTER TABLE audit DROP COLUMN after", usable_since=2)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    connection = await Connector(Dsn.parse(dsn)).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def refusal(dsn: str) -> str:
    """The text of the StartError, one line."""
    async with connected(dsn) as connection:
        with pytest.raises(StartError) as caught:
            await prepare_schema(connection)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_routers_that_start_together_install_once(postgres_schema: str) -> None:
    async def prepare() -> str:
        async with connected(postgres_schema) as connection:
            return await prepare_schema(connection)

    ids = await asyncio.gather(*(prepare() for _ in range(4)))
    assert len(set(ids)) == 1
    async with connected(postgres_schema) as connection:
        assert await connection.fetchval("SELECT schema_version FROM installation") == SCHEMA_VERSION


async def test_expanded_tables_serve_routers_of_the_version_before(postgres_schema: str) -> None:
    async with connected(postgres_schema) as connection:
        installation = await prepare_schema(connection)
        for _ in range(2):
            assert await prepare_schema(connection, version=2, migrations=(EXPAND,)) == installation
        # A router of the version before starts again, and changes nothing.
        assert await prepare_schema(connection) == installation
        assert await connection.fetchval("SELECT schema_version FROM installation") == 2
        assert await connection.fetchval("SELECT count(added) FROM audit") == 0


async def test_contracted_tables_refuse_routers_that_cannot_use_them(postgres_schema: str) -> None:
    async with connected(postgres_schema) as connection:
        await prepare_schema(connection, version=3, migrations=(EXPAND, CONTRACT))
        await prepare_schema(connection, version=2, migrations=(EXPAND,))
    assert "a newer Trunkline made the tables of the database (version 3)" in await refusal(postgres_schema)


async def test_failed_migration_changes_nothing(postgres_schema: str) -> None:
    broken = Migration(3, "ALTER TABLE audit DROP COLUMN missing", usable_since=3)
    async with connected(postgres_schema) as connection:
        await prepare_schema(connection)
        with pytest.raises(StartError, match="missing"):
            await prepare_schema(connection, version=3, migrations=(EXPAND, broken))
        assert await connection.fetchval("SELECT schema_version FROM installation") == SCHEMA_VERSION
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.fetch("SELECT added FROM audit")


async def test_migration_waits_for_nobody_long(postgres_schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements of the owner would wait behind it."""
    monkeypatch.setattr("trunkline_router.log.postgres.schema._LOCK_TIMEOUT_MS", 50)
    async with connected(postgres_schema) as reader, connected(postgres_schema) as connection:
        await prepare_schema(connection)
        async with reader.transaction():
            await reader.fetch("SELECT FROM audit")
            with pytest.raises(LogUnavailable, match="lock"):
                await prepare_schema(connection, version=2, migrations=(EXPAND,))
        await prepare_schema(connection, version=2, migrations=(EXPAND,))


async def test_tables_of_another_program_are_left_alone(postgres_schema: str) -> None:
    async with connected(postgres_schema) as connection:
        await connection.execute("CREATE TABLE messages (id integer)")
        assert "tables of another program: messages. Use another one" in await refusal(postgres_schema)
        await connection.execute("CREATE TABLE installation (name text)")
        assert "tables of another program: installation." in await refusal(postgres_schema)


async def test_role_without_rights_is_refused_with_what_to_grant(postgres_schema: str) -> None:
    server = shared_server()
    schema = Dsn.parse(postgres_schema).schema
    server.execute(f"REVOKE ALL ON SCHEMA {schema} FROM {ROLE}; ALTER SCHEMA {schema} OWNER TO postgres")
    assert f"no schema of the search_path {schema} exists" in await refusal(postgres_schema)
    server.execute(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
    assert f'GRANT CREATE ON SCHEMA "{schema}" TO "{ROLE}"' in await refusal(postgres_schema)
    server.execute(f"GRANT CREATE ON SCHEMA {schema} TO {ROLE}")
    async with connected(postgres_schema) as connection:
        await prepare_schema(connection)
    server.execute(
        f"ALTER TABLE {schema}.receipts OWNER TO postgres; GRANT SELECT ON {schema}.receipts TO {ROLE}"
    )
    assert "lacks rights on the tables receipts: GRANT SELECT, INSERT" in await refusal(postgres_schema)


async def test_read_only_and_incomplete_databases_are_refused(postgres_schema: str) -> None:
    assert "read-only" in await refusal(f"{postgres_schema}&default_transaction_read_only=on")
    async with connected(postgres_schema) as connection:
        await prepare_schema(connection)
        await connection.execute("DROP TABLE deliveries CASCADE")
        assert "lacks the tables deliveries" in await refusal(postgres_schema)
        await connection.execute("DELETE FROM installation")
        assert "not complete" in await refusal(postgres_schema)


async def test_database_in_another_encoding_is_refused() -> None:
    server = shared_server()
    server.execute(f"CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 OWNER {ROLE}")
    dsn = server.dsn().removesuffix(DATABASE) + "latin"
    assert "encoding is LATIN1, but must be UTF8" in await refusal(dsn)


def test_data_folder_stays_with_its_installation(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for _ in range(2):
        check_installation(folder, "one")
    with pytest.raises(StartError, match="belongs to the installation other") as caught:
        check_installation(folder, "other")
    assert str(folder / "installation") in str(caught.value)
    (folder / "installation").unlink()
    check_installation(folder, "other")
