"""Restores of backups: nothing hides the gap, and what was revoked or erased does not come back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import Page, PageRequest, Producer
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.backup_manifest import manifest_path
from trunkline_router.log.interface import BackupFailed
from trunkline_router.log.sqlite.backup import back_up, check_file
from trunkline_router.log.sqlite.commit_mark import mark_path
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.log.sqlite.restore import RestoreReport, restore

from tests.router.log.engines import ALICE, BOB, append, hashed_key, pending_entry, position
from tests.router.log.whole_erasures import erase_tenant, erase_user

GROUP: TopicKey = ("acme", "echo", "web", 2, "team")
ACTIVE, SUSPENDED = 1, 2


class LogFiles:
    """A log that tests back up and restore."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.db"
        self.backup = folder / "backup.db"

    def open(self) -> SqliteLog:
        return SqliteLog.open(self.path)

    def back_up(self) -> None:
        back_up(self.path, self.backup, force=True, progress=lambda share: None)

    def restore(self, audit: Sequence[dict[str, Any]] | None = None) -> RestoreReport:
        file = None
        if audit is not None:
            file = self.path.with_name("audit.jsonl")
            file.write_text("".join(json.dumps(entry) + "\n" for entry in audit))
        return restore(self.path, self.backup, file, progress=lambda share: None)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(text).fetchall()


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    return LogFiles(tmp_path)


async def read_all(log: SqliteLog, topic: TopicKey = ALICE, after: Position = EMPTY) -> Page:
    (page,) = await log.read([PageRequest(topic, 99, after=after)])
    return page


def tenant(name: str, state: int = ACTIVE, created_ms: int = 1, updated_ms: int = 1) -> StoredTenant:
    return StoredTenant(name, state, b"", created_ms, updated_ms)


def key(key_id: str, name: str = "acme") -> StoredApiKey:
    return StoredApiKey(key_id, name, "", key_id.encode(), (1,), 1)


async def test_ids_and_positions_of_the_lost_time_are_never_valid_again(files: LogFiles) -> None:
    log = files.open()
    kept = await append(
        log, *(pending_entry(text=f"kept {n}", deliver=True, key=hashed_key(n)) for n in range(3))
    )
    files.back_up()
    lost = await append(log, *(pending_entry(text=f"lost {n}", deliver=True) for n in range(3)))
    late = await append(log, pending_entry(BOB, deliver=True))
    await log.close()
    report = files.restore()
    assert (report.logs, report.warnings) == (1, [])
    assert report.replaced is not None
    assert check_file(files.path) == check_file(report.replaced) == []
    with capture_logs() as lines:
        log = files.open()
    assert lines == []
    new = await append(
        log, *(pending_entry(deliver=True) for _ in range(9)), pending_entry(BOB, deliver=True)
    )
    given = [*kept, *lost, *late, *new]
    assert len({each.message.id for each in given}) == len(given)
    assert len({each.delivery_id for each in given}) == len(given)
    for each in (*kept, *lost):
        assert not (await read_all(log, after=position(each))).valid
    page = await read_all(log)
    assert [Message.FromString(entry.body).id for entry in page.entries[:3]] == [m.message.id for m in kept]
    assert await log.message("acme", kept[1].message.id) is not None
    assert await log.message("acme", lost[1].message.id) is None
    (again,) = await append(log, pending_entry(text="kept 1", deliver=True, key=hashed_key(1)))
    assert (again.message.id, position(again)) == (kept[1].message.id, Position(page.head.epoch, 2))
    await log.close()


async def test_backups_can_be_restored_in_any_order(files: LogFiles) -> None:
    log = files.open()
    await append(log, pending_entry())
    files.back_up()
    early = files.backup.read_bytes(), manifest_path(files.backup).read_bytes()
    await append(log, pending_entry(BOB))
    files.back_up()
    later = files.backup.read_bytes(), manifest_path(files.backup).read_bytes()
    await log.close()
    for content, manifest in (early, later, early):
        files.backup.write_bytes(content)
        manifest_path(files.backup).write_bytes(manifest)
        report = files.restore()
        assert report.reapplied == []
        with capture_logs() as lines:
            log = files.open()
        assert lines == []
        entries = (await read_all(log, BOB)).entries
        assert len(entries) == (1 if content is later[0] else 0)
        await append(log, pending_entry())
        await log.close()


async def test_a_backup_that_is_restored_twice_gives_new_ids_each_time(files: LogFiles) -> None:
    log = files.open()
    opened = pending_entry(GROUP, producer=Producer("worker", 1))
    given = await append(log, pending_entry(deliver=True), opened)
    files.back_up()
    given += await append(log, pending_entry(deliver=True))
    await log.close()
    epochs = set()
    for _ in range(3):
        files.restore()
        log = files.open()
        given += await append(log, pending_entry(deliver=True), pending_entry(BOB, deliver=True))
        [stored] = await log.open_messages()
        epochs.add(stored.producer.epoch)
        await log.close()
    assert len({each.message.id for each in given}) == len(given)
    deliveries = [each.delivery_id for each in given if each.delivery_id]
    assert deliveries == sorted(set(deliveries))
    assert deliveries[-1] < 1 << 53
    assert len(epochs) == 3


async def test_a_log_that_began_after_the_backup_is_not_taken_for_an_empty_one(files: LogFiles) -> None:
    log = files.open()
    await append(log, pending_entry())
    files.back_up()
    await append(log, *(pending_entry(BOB, f"lost {n}") for n in range(3)))
    await append(log, pending_entry(GROUP))
    await log.reset(GROUP)
    await log.close()
    files.restore()
    assert check_file(files.path) == []
    log = files.open()
    page = await read_all(log, BOB)
    assert (page.entries, page.head.seq, page.is_forked) == ([], 3, True)
    assert await log.heads([GROUP]) == [EMPTY]
    [new] = await append(log, pending_entry(BOB))
    assert position(new).seq == 4
    await log.close()


@pytest.mark.parametrize("topic", [ALICE, BOB])
async def test_a_folder_that_was_put_back_whole_does_not_continue_later_backups(
    files: LogFiles, topic: TopicKey
) -> None:
    log = files.open()
    await append(log, pending_entry())
    await log.close()
    copied = [(path, path.read_bytes()) for path in (files.path, mark_path(files.path))]
    log = files.open()
    for _ in range(3):
        await append(log, pending_entry(topic))
    files.back_up()
    await log.close()
    for path, content in copied:
        path.write_bytes(content)
    log = files.open()
    for _ in range(9):
        await append(log, pending_entry(GROUP))
    await log.close()
    report = files.restore()
    assert any("does not continue the backup" in each for each in report.warnings)
    log = files.open()
    assert len((await read_all(log, topic)).entries) == (4 if topic == ALICE else 3)
    await log.close()


async def test_a_replaced_log_can_be_restored_with_its_write_ahead_log(files: LogFiles) -> None:
    log = files.open()
    await append(log, pending_entry())
    files.back_up()
    await append(log, pending_entry(text="only in the WAL"))
    killed = LogFiles(files.path.parent / "killed")
    os.makedirs(killed.path.parent)
    for name in ("log.db", "log.db-wal", "log.db.mark"):
        shutil.copy(files.path.with_name(name), killed.path.with_name(name))
    await log.close()
    killed.backup = files.backup
    replaced = killed.restore().replaced
    assert replaced is not None
    log = killed.open()
    assert (await log.heads([ALICE]))[0].seq == 1
    await log.close()
    killed.backup = replaced
    assert any("does not continue the backup" in each for each in killed.restore().warnings)
    log = killed.open()
    assert (await log.heads([ALICE]))[0].seq == 2
    await log.close()
    killed.backup = killed.path
    with pytest.raises(BackupFailed, match="the log itself"):
        killed.restore()


async def test_what_was_taken_away_does_not_come_back(files: LogFiles) -> None:
    log = files.open()
    await log.register(
        Registration(
            [tenant("acme"), tenant("evil"), tenant("gone"), tenant("again")],
            [key("kept"), key("revoked")],
            [StoredRevocation("acme", RevocationKind.USER, "old", 1, 1)],
        )
    )
    await append(
        log,
        pending_entry(),
        pending_entry(BOB, user="bob"),
        pending_entry(GROUP, "by bob", user="bob"),
        pending_entry(GROUP, "by carol", user="carol"),
        pending_entry(("gone", *ALICE[1:])),
        pending_entry(("again", *ALICE[1:])),
    )
    files.back_up()
    await log.register(
        Registration(
            [tenant("evil", SUSPENDED), tenant("new")],
            [key("later")],
            [StoredRevocation("acme", RevocationKind.ALL, "", 5, 5)],
            keys_gone=["revoked"],
        )
    )
    await erase_user(log, "bob")
    await log.reset(ALICE)
    for name in ("gone", "again"):
        await erase_tenant(log, name)
    await log.register(Registration([tenant("again", created_ms=9)]))
    await log.close()
    report = files.restore()
    assert report.warnings == []
    log = files.open()
    registered = await log.registered()
    assert [(each.tenant, each.state) for each in registered.tenants] == [
        ("acme", ACTIVE),
        ("again", ACTIVE),
        ("evil", SUSPENDED),
        ("new", ACTIVE),
    ]
    assert [each.key_id for each in registered.api_keys] == ["kept", "later"]
    assert [each.name for each in registered.revocations] == ["old", ""]
    for topic in (ALICE, BOB, ("gone", *ALICE[1:]), ("again", *ALICE[1:])):
        assert await log.heads([topic]) == [EMPTY]
    messages = [Message.FromString(entry.body) for entry in (await read_all(log, GROUP)).entries]
    assert [each.author.user for each in messages] == ["", "carol"]
    await log.close()
    told = "\n".join(report.reapplied)
    for part in ("tenant gone stays deleted", "API key revoked", "revoked: all", "user bob", "person alice"):
        assert part in told


async def test_an_audit_file_stands_in_for_a_log_that_is_lost(files: LogFiles) -> None:
    log = files.open()
    await log.register(
        Registration([tenant("acme"), tenant("evil"), tenant("gone")], [key("kept"), key("revoked")])
    )
    await append(log, pending_entry(), pending_entry(GROUP, user="bob"), pending_entry(("gone", *ALICE[1:])))
    files.back_up()
    await log.close()
    at_ms = json.loads(manifest_path(files.backup).read_text())["created_ms"] + 10
    files.path.unlink()

    def entry(
        action: str, target: str, tenant: str = "acme", after: Any = "", at: int = at_ms
    ) -> dict[str, Any]:
        return {
            "at_ms": at,
            "tenant": tenant,
            "actor": "operator",
            "source": "127.0.0.1",
            "action": action,
            "target": target,
            "before": "",
            "after": after,
        }

    report = files.restore(
        [
            entry("RevokeApiKey", "kept", at=at_ms - 600_000),
            entry("RevokeApiKey", "kept", after='{"error": "FORBIDDEN"}'),
            entry("RevokeApiKey", "revoked"),
            entry("RevokeTokens", "alice"),
            entry("RevokeTokens", "acme", after={"all": True}),
            entry("RevokeTokens", "all", after={"user": "all", "issued_before_ms": at_ms}),
            entry("DeleteTenant:refused", "evil", "evil", after={"error": "FORBIDDEN"}),
            entry("EraseUser", "bob"),
            entry("ResetConversation", "agent echo on platform web in person alice"),
            entry("SuspendTenant", "evil", "evil"),
            entry("DeleteTenant", "gone", "gone"),
            entry("UpdateTenant", "acme"),
        ]
    )
    assert report.warnings == ["UpdateTenant acme of tenant acme must be made again"]
    log = files.open()
    registered = await log.registered()
    assert [(each.tenant, each.state) for each in registered.tenants] == [
        ("acme", ACTIVE),
        ("evil", SUSPENDED),
    ]
    assert [each.key_id for each in registered.api_keys] == ["kept"]
    revoked = {(each.kind, each.name, each.issued_before_ms) for each in registered.revocations}
    assert revoked == {
        (RevocationKind.USER, "alice", at_ms),
        (RevocationKind.USER, "all", at_ms),
        (RevocationKind.TOKEN_ID, "alice", 0),
        (RevocationKind.ALL, "", at_ms),
    }
    assert await log.heads([ALICE, ("gone", *ALICE[1:])]) == [EMPTY, EMPTY]
    (entry_of_bob,) = (await read_all(log, GROUP)).entries
    assert Message.FromString(entry_of_bob.body).author.user == ""
    await log.close()


async def test_the_backup_itself_tells_which_audit_entries_it_has(files: LogFiles) -> None:
    """A change is recorded before it is committed, and the snapshot may lie in between."""
    log = files.open()
    erased = AuditRecord(time.time_ns() // 1_000_000, "acme", "operator", "", "EraseUser", "bob")
    await log.register(Registration([tenant("acme")], [key("revoked")], audit=[erased]))
    await append(log, pending_entry(GROUP, "after the erasure", user="bob"))
    files.back_up()
    await log.close()
    files.path.unlink()
    created_ms = json.loads(manifest_path(files.backup).read_text())["created_ms"]
    late = AuditRecord(created_ms - 200, "acme", "operator", "", "RevokeApiKey", "revoked")
    for has_manifest in (True, False):
        if not has_manifest:
            manifest_path(files.backup).unlink()
        files.restore([erased._asdict(), late._asdict()])
        log = files.open()
        assert (await log.registered()).api_keys == []
        [entry] = (await read_all(log, GROUP)).entries
        assert Message.FromString(entry.body).author.user == "bob"
        await log.close()
        files.path.unlink()


@pytest.mark.parametrize("former", ["missing", "damaged", "unrelated"])
async def test_a_former_log_of_no_use_is_said(files: LogFiles, former: str) -> None:
    log = files.open()
    await append(log, *(pending_entry(text="x" * 500) for _ in range(50)))
    files.back_up()
    await log.close()
    content = files.path.read_bytes()
    files.path.unlink()
    if former == "damaged":
        files.path.write_bytes(content[:9_000] + bytes(9_000))
    elif former == "unrelated":
        mark_path(files.path).unlink()
        other = files.open()
        await append(other, pending_entry(GROUP))
        await other.close()
    report = files.restore()
    assert any("no --audit file was given" in each for each in report.warnings)
    log = files.open()
    assert [head.seq for head in await log.heads([ALICE, GROUP])] == [50, 0]
    await log.close()
    assert (report.replaced is None) == (former == "missing")


async def test_a_restore_that_cannot_be_done_changes_nothing(files: LogFiles) -> None:
    log = files.open()
    await append(log, *(pending_entry(text="x" * 500) for _ in range(50)))
    files.back_up()
    (last,) = await append(log, pending_entry())
    with pytest.raises(BackupFailed, match="in use by another router"):
        files.restore()
    await log.close()
    whole = files.backup.read_bytes()
    before = sorted(os.listdir(files.path.parent))
    files.backup.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackupFailed, match="SHA-256 differs"):
        files.restore()
    manifest_path(files.backup).unlink()
    files.backup.write_bytes(whole[:30_000] + bytes(2_000) + whole[32_000:])
    with pytest.raises(BackupFailed, match=r"damaged|malformed"):
        files.restore()
    files.backup.write_bytes(whole)
    audit = files.path.with_name("audit.txt")
    audit.write_text("no JSON\n")
    with pytest.raises(BackupFailed, match="audit entries as JSON lines"):
        restore(files.path, files.backup, audit, progress=lambda share: None)
    with pytest.raises(BackupFailed, match="does not exist"):
        restore(files.path, files.backup.with_name("none.db"), None, progress=lambda share: None)
    left = {"audit.txt", "backup.db.json"}
    assert set(os.listdir(files.path.parent)) - left == set(before) - left
    log = files.open()
    assert await log.heads([ALICE]) == [position(last)]
    await log.close()


async def test_an_interrupted_swap_leaves_a_log_that_starts(
    files: LogFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = files.open()
    (first,) = await append(log, pending_entry())
    files.back_up()
    (second,) = await append(log, pending_entry())
    killed = LogFiles(files.path.parent / "killed")
    os.makedirs(killed.path.parent)
    for name in ("log.db", "log.db-wal", "log.db.mark"):
        shutil.copy(files.path.with_name(name), killed.path.with_name(name))
    killed.backup = files.backup
    await log.close()

    def fail(self: Path, target: Path) -> None:
        raise OSError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(BackupFailed, match="power failure"):
            killed.restore()
    log = killed.open()
    assert await log.heads([ALICE]) == [position(second)]
    assert (await read_all(log, after=position(first))).valid
    await log.close()


async def test_a_restore_is_on_record(files: LogFiles) -> None:
    log = files.open()
    await append(log, pending_entry())
    files.back_up()
    await log.close()
    files.restore()
    log = files.open()
    [(_, record)] = await log.audit(AuditQuery("", "", 0, 0, 9))
    assert (record.actor, record.action, record.target) == ("operator", "Restore", "backup.db")
    assert record.source == "command line"
    assert json.loads(record.after)["topics"] == 1
    await log.close()


async def test_what_a_killed_backup_or_restore_left_is_deleted_by_the_next(files: LogFiles) -> None:
    log = files.open()
    await append(log, pending_entry())
    folder = files.path.parent
    left = [folder / ".backup.db.0123456789ab", folder / ".backup.db.0123456789ab-journal"]
    for path in left:
        path.touch()
    files.back_up()
    await log.close()
    left += [folder / "log.db.restore-0123456789ab", folder / "log.db.restore-0123456789ab-wal"]
    for path in left[2:]:
        path.touch()
    files.restore()
    assert not [path for path in left if path.exists()]
