"""Installs the tables, brings older ones up to date, and checks that they can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import asyncpg
import structlog
from trunkline_runtime.process import StartError

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.migration.copied_log import COPYING
from trunkline_router.log.postgres.connector import Connection
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS, explain

_log = structlog.get_logger()

#: Version of the tables that this code reads and writes.
SCHEMA_VERSION = 1
UNFINISHED_COPY = (
    "the database holds an unfinished copy: run `trunkline-router migrate` again, or with --discard"
)
NO_LOG = "there is no log in this schema of the database: see search_path"
#: Whether there is a log, or what looks like one.
HAS_LOG = "SELECT to_regclass('installation') IS NOT NULL"
#: Whether another log is being copied into this one.
IS_COPYING = f"SELECT schema_version >= {COPYING} FROM installation"
#: The oldest major version of PostgreSQL that the tests cover.
MIN_SERVER = 16


class Migration(NamedTuple):
    """Brings the tables to `version` from the one before.

    While routers of the version before still run, a migration only expands: it adds what their statements
    need not know, and `usable_since` stays. Once no such router is left, a later version may contract: it
    removes what only they needed, and raises `usable_since`.
    """

    version: int
    sql: str
    #: Oldest version whose routers can use the tables afterwards.
    usable_since: int


#: In order. schema.sql holds the result of all of them.
MIGRATIONS: tuple[Migration, ...] = ()

_SCHEMA = Path(__file__).with_name("schema.sql").read_text()
_TABLES = re.findall(r"^CREATE TABLE (\w+)", _SCHEMA, re.MULTILINE)
#: Of the advisory lock under which routers install and migrate; arbitrary.
_LOCK = 0x7472756E6B6C696E
#: A migration gives up if others use the tables for longer: statements that wait behind it would wait, too.
_LOCK_TIMEOUT_MS = 2_000

_SERVER = """
    SELECT current_setting('server_encoding') AS encoding,
        current_setting('transaction_read_only')::boolean AS read_only,
        current_schema() AS schema, current_user AS role, current_setting('search_path') AS path,
        CASE WHEN current_schema() IS NULL THEN false
            ELSE has_schema_privilege(current_schema(), 'CREATE') END AS may_create
"""
_PRESENT = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(quote_ident(name)) IS NOT NULL"
_INSTALLATION_COLUMNS = """
    SELECT count(*) FROM pg_attribute
    WHERE attrelid = to_regclass('installation') AND attname IN ('installation_id', 'schema_version')
"""
_NO_RIGHTS = """
    SELECT name FROM unnest($1::text[]) AS name
    WHERE NOT (
        has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT')
        AND has_table_privilege(name, 'UPDATE') AND has_table_privilege(name, 'DELETE')
    )
"""
_INSTALLED = "SELECT installation_id, schema_version, usable_since FROM installation"
_MIGRATED = "UPDATE installation SET schema_version = $1, usable_since = $2"


async def prepare_schema(
    connection: Connection, *, version: int = SCHEMA_VERSION, migrations: tuple[Migration, ...] = MIGRATIONS
) -> str:
    """Install or migrate the tables if need be, and return the installation's id.

    Routers that start together do this one after the other. Running routers of the version before are not
    disturbed. Raises StartError for what a person must change, and LogUnavailable for what time heals.
    """
    try:
        server = await _check_server(connection)
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            return await _prepare(connection, server, version, migrations)
    except (
        asyncpg.InsufficientPrivilegeError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.SyntaxOrAccessError,
    ) as error:
        raise StartError(f"cannot prepare the database: {explain(error)}") from error
    except DATABASE_ERRORS as error:
        raise LogUnavailable(f"cannot prepare the database: {explain(error)}") from error


async def _check_server(connection: Connection) -> asyncpg.Record:
    """Check what time does not heal, and return the server's row of _SERVER. Raises StartError."""
    server = await connection.fetchrow(_SERVER)
    assert server is not None
    if (major := connection.get_server_version().major) < MIN_SERVER:
        raise StartError(f"PostgreSQL {MIN_SERVER} or newer is needed; the server is version {major}")
    if server["encoding"] != "UTF8":
        raise StartError(
            f"the database's encoding is {server['encoding']}, but must be UTF8:"
            " CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if server["read_only"]:
        raise StartError("the database is read-only: default_transaction_read_only is on")
    if server["schema"] is None:
        raise StartError(
            f"no schema of the search_path {server['path']} exists, or {server['role']} may not use it:"
            f' CREATE SCHEMA … AUTHORIZATION "{server["role"]}"'
        )
    return server


async def _prepare(
    connection: Connection, server: asyncpg.Record, version: int, migrations: tuple[Migration, ...]
) -> str:
    present = await _present(connection)
    if "installation" not in present:
        await _install(connection, server, present)
    elif await connection.fetchval(_INSTALLATION_COLUMNS) != 2:
        raise _foreign_tables(["installation"])
    await _check_rights(connection, server, present)
    installed = await connection.fetchrow(_INSTALLED)
    if installed is None:
        raise StartError("the table `installation` is empty: the database is not complete")
    if installed["schema_version"] >= COPYING:
        raise StartError(UNFINISHED_COPY)
    if installed["usable_since"] > version:
        raise StartError(
            f"a newer Trunkline made the tables of the database (version {installed['schema_version']});"
            f" this one can use tables up to version {version}: update it"
        )
    await _migrate(connection, installed["schema_version"], migrations)
    if missing := set(_TABLES) - await _present(connection):
        raise StartError(
            f"the database lacks the tables {', '.join(sorted(missing))}: restore it from a backup"
        )
    return str(installed["installation_id"])


async def _present(connection: Connection) -> set[str]:
    return {row["name"] for row in await connection.fetch(_PRESENT, _TABLES)}


async def _check_rights(connection: Connection, server: asyncpg.Record, present: set[str]) -> None:
    lacking = [row["name"] for row in await connection.fetch(_NO_RIGHTS, sorted(present))]
    if lacking:
        raise StartError(
            f"the role {server['role']} lacks rights on the tables {', '.join(lacking)}:"
            " GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
            f' "{server["schema"]}" TO "{server["role"]}"'
        )


async def _install(connection: Connection, server: asyncpg.Record, present: set[str]) -> None:
    if present:
        raise _foreign_tables(sorted(present))
    if not server["may_create"]:
        raise StartError(
            f"the role {server['role']} may not create tables in the schema {server['schema']}:"
            f' GRANT CREATE ON SCHEMA "{server["schema"]}" TO "{server["role"]}"'
        )
    await connection.execute(_SCHEMA)
    _log.info("installed the tables of the log", schema=server["schema"], version=SCHEMA_VERSION)


async def _migrate(connection: Connection, installed: int, migrations: tuple[Migration, ...]) -> None:
    for migration in migrations:
        if migration.version > installed:
            await connection.execute(migration.sql)
            await connection.execute(_MIGRATED, migration.version, migration.usable_since)
            _log.info("migrated the tables of the log", version=migration.version)


def _foreign_tables(names: list[str]) -> StartError:
    return StartError(
        f"the schema has tables of another program: {', '.join(names)}."
        " Use another one: CREATE SCHEMA trunkline, and ?search_path=trunkline in TRUNKLINE_DATABASE_URL"
    )
