"""The PostgreSQL servers of the tests start, crash, fail over, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import postgres_binaries
from tests.support.patience import patient
from tests.support.postgres import PostgresServer, shared_server
from tests.support.postgres_binaries import VERSIONS, missing, scratch_folder
from tests.support.postgres_template import PASSWORD, ROLE
from tests.support.processes import ROOT, ended, linux

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
asyncpg = pytest.importorskip("asyncpg")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.create() as server:
        yield server


async def fetch(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=patient(10))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_serves_a_plain_role_over_tcp(version: int) -> None:
    server = shared_server(version)
    assert server is shared_server(version)
    dsn = server.fresh_schema()
    assert str(await fetch(dsn, "SHOW server_version")).startswith(f"{version}.")
    assert (
        await fetch(dsn, "SELECT session_user || pg_encoding_to_char(encoding) FROM pg_database")
        == f"{ROLE}UTF8"
    )
    assert await fetch(dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = session_user") is False
    assert [await fetch(dsn, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]


async def test_tests_do_not_see_each_others_tables(postgres_schema: str) -> None:
    await fetch(postgres_schema, "CREATE TABLE one (n int)")
    another = shared_server().fresh_schema()
    assert await fetch(postgres_schema, "SELECT to_regclass('one')::text") == "one"
    assert await fetch(another, "SELECT to_regclass('one')::text") is None


async def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(server.dsn().replace(PASSWORD, "wrong"), "SELECT 1")


async def test_committed_rows_outlive_stops_and_crashes(server: PostgresServer) -> None:
    dsn = server.create_schema("crashing")
    await fetch(dsn, "CREATE TABLE rows (n int)")
    for end in (server.stop, lambda: server.stop("immediate"), server.crash):
        await fetch(dsn, "INSERT INTO rows SELECT count(*) FROM rows")
        end()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            await fetch(dsn, "SELECT 1")
        server.start()
    assert await fetch(dsn, "SELECT array_agg(n) FROM rows") == [0, 1, 2]


async def test_a_frozen_server_answers_nothing_until_it_goes_on(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.dsn())
    server.freeze()
    with pytest.raises(TimeoutError):
        await connection.execute("SELECT 1", timeout=0.05)
    server.thaw()
    assert await fetch(server.dsn(), "SELECT 1") == 1
    await connection.close()


async def test_a_synchronous_standby_takes_over_with_every_commit() -> None:
    with PostgresServer.create() as primary:
        standby = primary.base_backup(synchronous=True)
        either = primary.dsn(address=f"{primary.address},{standby.address}", target_session_attrs="primary")
        await fetch(either, "CREATE TABLE rows (n int)")
        assert await fetch(standby.dsn(), "SELECT pg_is_in_recovery()") is True
        primary.crash()
        standby.promote()
        assert await fetch(either, "SELECT count(*) FROM rows") == 0


async def test_an_asynchronous_standby_delays_no_commit() -> None:
    with PostgresServer.create() as primary:
        primary.base_backup().crash()
        await fetch(primary.dsn(), "CREATE TABLE rows (n int)")


def test_settings_can_be_given_and_changed() -> None:
    with PostgresServer.create(statement_timeout="1min") as server:
        assert server.execute("SHOW statement_timeout") == "1min"
        server.configure(statement_timeout="2min", work_mem="1MB")
        server.configure(work_mem="")
        assert server.execute("SHOW statement_timeout; SHOW work_mem") == "2min\n4MB"


def test_an_error_of_sql_is_raised(server: PostgresServer) -> None:
    with pytest.raises(AssertionError, match="division by zero"):
        server.execute("SELECT 1/0")


def test_a_server_that_cannot_start_is_reported_with_its_log() -> None:
    with pytest.raises(
        AssertionError, match=r"did not start; its log:\n.*unrecognized configuration parameter"
    ):
        PostgresServer.create(no_such_setting="1")


@pytest.mark.skipif(os.geteuid() != 0, reason="another account runs PostgreSQL only for root")
def test_programs_that_only_root_can_reach_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = postgres_binaries.programs(18)
    monkeypatch.setattr(postgres_binaries, "_others_can_run", lambda _: False)
    copied = postgres_binaries.programs.__wrapped__(18)
    assert copied != installed
    monkeypatch.setattr(postgres_binaries, "programs", lambda _: copied)
    assert postgres_binaries.run(18, "psql", "--version").startswith("psql (PostgreSQL) 18.")


@linux
def test_servers_and_their_folders_go_when_the_tests_are_killed() -> None:
    source = """
import os, signal
from tests.support.postgres import shared_server
server = shared_server()
print(server.pid, server._folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "deploy")])}
    tests = subprocess.run(
        [sys.executable, "-c", source],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(20),
    )
    assert tests.returncode == -signal.SIGKILL, tests.stderr
    pid, folder = tests.stdout.split()
    assert ended(int(pid))
    # By the next process that creates a folder.
    scratch_folder().rmdir()
    assert not os.path.exists(folder)
