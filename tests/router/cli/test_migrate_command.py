"""`trunkline-router migrate`, and the commands on a data folder while the log is in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import typer
from trunkline_router.cli.data_commands import add_data_commands
from trunkline_router.cli.migrate_command import add_migrate_command
from trunkline_router.log.postgres.database import PostgresDatabase
from trunkline_router.log.postgres.lease import PostgresLease
from trunkline_router.log.sqlite.database_file import FileLock, connect_writer
from trunkline_router.log.stored_entries import checksum
from typer.testing import CliRunner

from tests.router.cli.command_line import CommandResult
from tests.router.log.migration.random_logs import RandomLog
from tests.router.log.migration.tenant_logs import fill, open_log
from tests.router.log.test_encryption import data_keys, row
from tests.support.patience import patient
from tests.support.postgres import shared_server
from tests.support.processes import environment


def run(*words: object, **env: str) -> CommandResult:
    """Run a command in this process."""
    app = typer.Typer()
    add_data_commands(app)
    add_migrate_command(app)
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", **env})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def refusal(*words: object, **env: str) -> str:
    """Run a command that must be refused. Returns its one line."""
    done = run(*words, **env)
    assert (done.code, done.out) == (2, ""), done
    [line] = done.err.splitlines()
    return line


def fetch(dsn: str, query: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    RandomLog(4).write(tmp_path / "source" / "trunkline.db")
    return tmp_path / "source"


def test_the_data_folder_moves_to_the_database_of_the_settings_and_back(
    source: Path, tmp_path: Path, postgres_schema: str
) -> None:
    settings = {"TRUNKLINE_DATA_DIR": str(source), "TRUNKLINE_DATABASE_URL": postgres_schema}
    there = run("migrate", "--from", "sqlite", "--to", "postgresql", **settings)
    assert there.code == 0, there
    assert "│ messages " in there.out
    assert there.out.splitlines()[-1].endswith("; verified.")
    assert "trunkline:" not in there.out
    settings["TRUNKLINE_DATA_DIR"] = str(tmp_path / "new")
    back = run("migrate", "--from", "postgresql", "--to", "sqlite", "--json", **settings)
    assert back.code == 0, back
    copied = {each["table"]: each["rows"] for each in back.json["tables"]}
    assert copied["messages"] > 0
    assert (tmp_path / "new" / "trunkline.db").exists()


def test_what_cannot_be_copied_is_refused_in_one_line(
    source: Path, tmp_path: Path, postgres_schema: str
) -> None:
    new = tmp_path / "new"
    assert "does not exist" in refusal("migrate", "--from", tmp_path / "typo", "--to", new)
    assert "TRUNKLINE_DATABASE_URL is not set" in refusal("migrate", "--from", source, "--to", "postgresql")
    assert "mysql://here/db is not postgresql://user@host" in refusal(
        "migrate", "--from", source, "--to", "mysql://here/db"
    )
    for words in (("--from", postgres_schema, "--to", new), ("--discard", "--to", postgres_schema)):
        assert "there is no log in this schema" in refusal("migrate", *words)
    assert "does not exist" in refusal("migrate", "--discard", "--to", new)
    assert not new.exists()
    wrong = postgres_schema.replace("trunkline:", "trunkline:wrong-")
    assert "password" in refusal("migrate", "--from", source, "--to", wrong)
    for typo in ("postgresql:/here/db", "postgresql:db"):
        assert "is not postgresql://user@host" in refusal("migrate", "--from", source, "--to", typo)
    assert "no tenant gnome" in refusal("migrate", "--from", source, "--to", new, "--tenant", "gnome")
    assert run("migrate", "--from", source, "--to", postgres_schema).code == 0
    RandomLog(5).write(tmp_path / "other.db")
    full = refusal("migrate", "--from", tmp_path / "other.db", "--to", postgres_schema)
    assert "is not empty: name the tenants" in full
    there = refusal("migrate", "--from", source, "--to", postgres_schema, "--tenant", "acme")
    assert "has a tenant acme already" in there


def test_a_log_in_use_is_refused(source: Path, tmp_path: Path) -> None:
    lock = FileLock(source / "trunkline.db")
    assert "in use by another router" in refusal("migrate", "--from", source, "--to", tmp_path / "new")
    lock.release()
    assert "in use" in refusal("migrate", "--from", source, "--to", source)


def test_a_backup_or_an_older_copy_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "trunkline.db.mark").unlink()
    assert "is a backup, or has lost commits" in refusal("migrate", "--from", source, "--to", tmp_path / "n")


@pytest.mark.parametrize("version", [7, 9])
def test_another_schema_is_refused(source: Path, tmp_path: Path, version: int) -> None:
    with closing(connect_writer(source / "trunkline.db")) as db:
        db.execute(f"PRAGMA user_version = {version}")
    assert f"schema version {version}" in refusal("migrate", "--from", source, "--to", tmp_path / "new")


def test_an_encrypted_log_is_copied_without_its_data_key_but_not_with_another(tmp_path: Path) -> None:
    async def write() -> None:
        log = open_log(tmp_path / "1" / "trunkline.db", data_keys(1))
        await fill(log, "acme", encrypted=True)
        await log.close()

    asyncio.run(write())
    words = "migrate", "--from", tmp_path / "1", "--to", tmp_path / "2"
    assert "not with" in refusal(*words, TRUNKLINE_DATA_KEY=row(2))
    done = run(*words)
    assert done.code == 0
    assert f"needs the data key {data_keys(1).current.key_id}" in done.out


def test_rights_that_are_missing_are_named(source: Path, postgres_schema: str) -> None:
    server = shared_server()
    schema = postgres_schema.partition("search_path=")[2]
    server.execute(f"ALTER SCHEMA {schema} OWNER TO postgres; GRANT USAGE ON SCHEMA {schema} TO trunkline")
    assert "may not create tables" in refusal("migrate", "--from", source, "--to", postgres_schema)


def test_a_copy_that_differs_is_kept_from_routers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trunkline_router.log.sqlite.copied_file import CopiedFile

    write = CopiedFile.write

    async def losing(copied: CopiedFile, table: Any, rows: list[Any], state: str) -> None:
        await write(copied, table, rows[:-1] if table.name == "receipts" else rows, state)

    monkeypatch.setattr(CopiedFile, "write", losing)
    done = run("migrate", "--from", source, "--to", tmp_path / "new")
    assert (done.code, done.out) == (1, "")
    assert "the copy of receipts differs: it has" in done.err
    with pytest.raises(Exception, match="unfinished copy"):
        open_log(tmp_path / "new" / "trunkline.db")
    monkeypatch.undo()
    assert run("migrate", "--discard", "--to", tmp_path / "new").code == 0
    assert run("migrate", "--from", source, "--to", tmp_path / "new").code == 0


def large_log(folder: Path, messages: int) -> None:
    RandomLog(4).write(folder / "trunkline.db")
    with closing(connect_writer(folder / "trunkline.db")) as db:
        db.execute("INSERT INTO topics VALUES (600, 'acme', 'echo', 'web', 1, 'large', 'large', 0, 0)")
        rows = [
            (600, seq, 1, 1, "alice", body, checksum(600, seq, body))
            for seq in range(1, messages + 1)
            for body in [b"x" * 100]
        ]
        db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.commit()


def test_a_copy_continues_after_kills(tmp_path: Path, postgres_schema: str) -> None:
    large_log(tmp_path / "large", 20_000)
    words = ["migrate", "--from", str(tmp_path / "large"), "--to", postgres_schema]
    is_begun, count = "SELECT to_regclass('copy_state')", "SELECT count(*) FROM messages"
    for least in (2_000, 10_000):
        command = subprocess.Popen(
            [sys.executable, "-m", "trunkline_router", *words],
            env=environment({"TRUNKLINE_OWNERSHIP_LEASE_S": "1"}),
        )
        for _ in range(int(patient(20) * 100)):
            if fetch(postgres_schema, is_begun) and fetch(postgres_schema, count) >= least:
                break
        command.kill()
        command.wait()
        assert fetch(postgres_schema, "SELECT schema_version FROM installation") > 1_000_000
    done = run(*words, "--json", TRUNKLINE_OWNERSHIP_LEASE_S="1")
    assert done.code == 0, done
    copied = {each["table"]: each for each in done.json["tables"]}
    back = run("migrate", "--from", postgres_schema, "--to", tmp_path / "back", "--json")
    assert {each["table"]: each for each in back.json["tables"]} == copied
    assert copied["messages"]["rows"] > 20_000


def test_the_log_in_postgres_is_checked(tmp_path: Path, postgres_schema: str) -> None:
    async def write() -> None:
        log = open_log(tmp_path / "1" / "trunkline.db")
        await fill(log, "acme")
        await log.close()

    asyncio.run(write())
    assert run("migrate", "--from", tmp_path / "1", "--to", postgres_schema).code == 0
    settings = {"TRUNKLINE_DATABASE_URL": postgres_schema, "TRUNKLINE_DATA_DIR": str(tmp_path / "1")}
    assert run("check", **settings).out == "No problems were found.\n"
    fetch(postgres_schema, "UPDATE messages SET body = body || 'x' WHERE seq = 2 RETURNING 1")
    fetch(postgres_schema, "DELETE FROM messages WHERE seq = 3 RETURNING 1")
    damaged = run("check", "--json", **settings)
    assert damaged.code == 1
    problems = " ".join(json.loads(damaged.out)["problems"])
    assert "does not have its checksum" in problems
    assert "entries instead of" in problems
    for words in (("backup", tmp_path / "b"), ("restore", tmp_path / "b")):
        assert "the log is in PostgreSQL" in refusal(*words, **settings)


def test_a_restored_database_begins_new_epochs(source: Path, tmp_path: Path, postgres_schema: str) -> None:
    assert "TRUNKLINE_DATABASE_URL is not set" in refusal("restored")
    copied = run("migrate", "--from", source, "--to", postgres_schema, "--json").json
    topics = next(each["rows"] for each in copied["tables"] if each["table"] == "topics")
    done = run("restored", TRUNKLINE_DATABASE_URL=postgres_schema)
    assert (done.code, done.out) == (0, f"The log in PostgreSQL has {topics} topics, each in a new epoch.\n")
    former = fetch(postgres_schema, "SELECT count(DISTINCT topic_id) FROM former_epochs")
    assert former > 0
    assert fetch(postgres_schema, "SELECT reserved FROM id_blocks WHERE name = 'topics'") > 1 << 32
    assert fetch(postgres_schema, "SELECT action FROM audit ORDER BY id DESC LIMIT 1") == "Restore"


def test_a_database_in_use_is_refused_and_one_of_a_killed_router_taken(
    source: Path, postgres_schema: str
) -> None:
    """Also as a source, and by `restored`."""

    async def while_owned(killed: bool) -> list[CommandResult]:
        database = PostgresDatabase(postgres_schema, address="router-a", lease_s=1)
        log, lease = await database.acquire(lambda: None)
        if killed:
            await log.close()
            assert isinstance(lease, PostgresLease)
            lease._renewing.cancel()
            lease._disconnect()
        commands = [
            ("migrate", "--from", source, "--to", postgres_schema),
            ("migrate", "--from", postgres_schema, "--to", source.parent / "new"),
            ("restored",),
        ]
        settings = {"TRUNKLINE_DATABASE_URL": postgres_schema, "TRUNKLINE_OWNERSHIP_LEASE_S": "1"}
        done = [await asyncio.to_thread(run, *words, **settings) for words in commands]
        if not killed:
            await log.close()
            await lease.release()
        await database.close()
        return done

    for refused in asyncio.run(while_owned(killed=False)):
        assert refused.code == 2
        [line] = refused.err.splitlines()
        assert line.endswith("in use by another router (router-a): stop all routers first")
    assert [done.code for done in asyncio.run(while_owned(killed=True))] == [0, 0, 0]


@pytest.mark.parametrize("version", [16, 18])
def test_a_role_that_owns_no_tables_copies_from_them(source: Path, tmp_path: Path, version: int) -> None:
    """As `docs/postgres.md` grants it rights; ids go on rising in the copy, whatever it may see."""
    server = shared_server(version)
    first, second = server.fresh_schema(), server.fresh_schema()
    schema = first.partition("search_path=")[2]
    assert run("migrate", "--from", source, "--to", first).code == 0
    role = f"reader_{version}"
    server.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'reads'; GRANT USAGE ON SCHEMA {schema} TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
    )
    reader = f"postgresql://{role}:reads@{first.partition('@')[2]}"
    done = run("migrate", "--from", reader, "--to", second)
    assert done.code == 0, done
    new = "INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)"
    above = fetch(second, f"{new} VALUES (1, '', '', '', '', '', '', '') RETURNING id")
    assert above > fetch(first, "SELECT max(id) FROM audit")
