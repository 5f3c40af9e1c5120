"""Files that lost commits: older copies put in place, and write-ahead logs that were lost, cut or changed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message
from trunkline_router.core.values.log_records import (
    DeadLettered,
    EntryKind,
    Page,
    PageRequest,
    Producer,
    Transaction,
)
from trunkline_router.core.values.topics import EMPTY, Position
from trunkline_router.log.interface import BackupFailed, LogDamaged, LogUnavailable
from trunkline_router.log.sqlite.backup import back_up, check_file
from trunkline_router.log.sqlite.commit_mark import mark_path
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import ALICE, BOB, append, edit, end, pending_entry, position, read
from tests.router.log.whole_erasures import erase_user

ALL = PageRequest(ALICE, 99, after=EMPTY)


async def read_all(log: SqliteLog, after: Position = EMPTY) -> Page:
    (page,) = await log.read([ALL._replace(after=after)])
    return page


def copy_files(source: Path, target: Path) -> None:
    """Copy a database with its write-ahead log, as it is on disk now."""
    target.mkdir(exist_ok=True)
    for name in ("log.db", "log.db-wal"):
        shutil.copy(source / name, target / name)


def put_back(source: Path, target: Path) -> None:
    (target / "log.db-shm").unlink(missing_ok=True)
    for file in source.iterdir():
        shutil.copy(file, target / file.name)


def crash(log: SqliteLog) -> None:
    """Let go of the files as a killed process does, without a checkpoint."""
    log._lock.release()


async def log_with_lost_entries(folder: Path) -> tuple[list[str], Position]:
    """Write three messages, copy the files, write two more and put the copy back.

    Returns the ids of all five messages and the last position.
    """
    os.makedirs(folder)
    log = SqliteLog.open(folder / "log.db")
    kept = await append(log, *(pending_entry(text=f"kept {n}", deliver=True) for n in range(3)))
    copy_files(folder, folder / "copy")
    lost = await append(log, *(pending_entry(text=f"lost {n}", deliver=True) for n in range(2)))
    await log.close()
    put_back(folder / "copy", folder)
    return [each.message.id for each in (*kept, *lost)], position(lost[-1])


async def test_an_older_copy_gives_every_log_a_new_epoch(tmp_path: Path) -> None:
    ids, last = await log_with_lost_entries(tmp_path / "data")
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "data" / "log.db")
    assert [(line["missing_commits"], line["logs"]) for line in lines] == [(1, 1)]
    (head,) = await log.heads([ALICE])
    assert (head.seq, head.epoch != last.epoch) == (3, True)
    new = await append(log, *(pending_entry(text=f"new {n}", deliver=True) for n in range(9)))
    assert not {each.message.id for each in new} & set(ids)
    assert min(each.delivery_id for each in new) > 5
    for seq in range(1, 6):
        assert not (await read_all(log, after=Position(last.epoch, seq))).valid
    page = await read_all(log)
    assert page.is_forked
    messages = [Message.FromString(entry.body) for entry in page.entries]
    assert [each.id for each in messages] == ids[:3] + [each.message.id for each in new]
    assert [each.position for each in messages] == [Position(head.epoch, n).to_proto() for n in range(1, 13)]
    found = [await log.message("acme", each) for each in ids]
    assert [each is not None for each in found] == [True] * 3 + [False] * 2
    assert await log.message("evil", ids[0]) is None
    assert await log.message("acme", f"{head.epoch}-1") is None
    await log.close()
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "data" / "log.db")
    assert lines == []
    assert (await log.heads([ALICE]))[0] == Position(head.epoch, 12)
    await log.close()


async def test_entries_from_before_the_loss_can_be_changed_read_and_erased(tmp_path: Path) -> None:
    ids, _ = await log_with_lost_entries(tmp_path / "data")
    log = SqliteLog.open(tmp_path / "data" / "log.db")
    (head,) = await log.heads([ALICE])
    first = pending_entry()
    stored = await log.message("acme", ids[0])
    assert stored is not None
    first.message.ParseFromString(stored)
    changed, seen = await append(log, edit(first), read(ALICE, Position(head.epoch, 2)))
    assert (changed.message.id, position(seen)) == (ids[0], Position(head.epoch, 5))
    page = await read_all(log)
    kinds = [entry.kind for entry in page.entries]
    assert kinds == [EntryKind.MESSAGE] * 3 + [EntryKind.CHANGE, EntryKind.READ]
    change, receipt = (entry.body for entry in page.entries[3:])
    assert Change.FromString(change).message.id == ids[0]
    assert ReadFrame.FromString(receipt).position == Position(head.epoch, 2).to_proto()
    await erase_user(log, "alice")
    await log.close()


async def test_erased_messages_from_before_the_loss_keep_their_ids(tmp_path: Path) -> None:
    ids, _ = await log_with_lost_entries(tmp_path / "data")
    log = SqliteLog.open(tmp_path / "data" / "log.db")
    await append(log, pending_entry(user="carol"))
    (new,) = await append(log, pending_entry(BOB, user="alice"))
    await erase_user(log, "carol")
    log2 = await read_all(log)
    assert [Message.FromString(entry.body).id for entry in log2.entries[:3]] == ids[:3]
    assert new.message.id
    await log.close()


async def test_open_messages_and_deliveries_survive_with_higher_epochs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    log = SqliteLog.open(folder / "log.db")
    (opened, _) = await append(
        log, pending_entry(producer=Producer("worker", 3)), pending_entry(text="work", deliver=True)
    )
    copy_files(folder, folder / "copy")
    await append(log, pending_entry(text="lost"))
    await log.close()
    put_back(folder / "copy", folder)
    log = SqliteLog.open(folder / "log.db")
    (head,) = await log.heads([ALICE])
    (stored,) = await log.open_messages()
    assert stored.producer.epoch > 1 << 20
    message = Message.FromString(stored.message)
    assert (message.id, message.position) == (opened.message.id, Position(head.epoch, 1).to_proto())
    (delivery,) = await log.deliveries("acme", "echo", 0, 9)
    assert Message.FromString(delivery.message).position == Position(head.epoch, 2).to_proto()
    opened.message.ParseFromString(stored.message)
    (ended,) = await append(log, end(opened))
    assert position(ended) == Position(head.epoch, 3)
    assert await log.open_messages() == []
    await log.close()


@pytest.mark.parametrize("lost", ["mark", "other database"])
async def test_a_file_that_cannot_be_proved_whole_counts_as_older(tmp_path: Path, lost: str) -> None:
    log = SqliteLog.open(tmp_path / "log.db")
    (one,) = await append(log, pending_entry())
    await log.close()
    if lost == "mark":
        mark_path(tmp_path / "log.db").unlink()
    else:
        other = SqliteLog.open(tmp_path / "other.db")
        (one,) = await append(other, pending_entry())
        await other.close()
        (tmp_path / "other.db").rename(tmp_path / "log.db")
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "log.db")
    assert [line["missing_commits"] for line in lines] == ["unknown"]
    assert (await log.heads([ALICE]))[0].epoch != position(one).epoch
    await log.close()


async def test_a_crash_between_commit_and_mark_is_no_loss(tmp_path: Path) -> None:
    log = SqliteLog.open(tmp_path / "log.db")
    (one,) = await append(log, pending_entry())
    mark = mark_path(tmp_path / "log.db").read_bytes()
    await append(log, pending_entry())
    await log.close()
    mark_path(tmp_path / "log.db").write_bytes(mark)
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "log.db")
    assert (lines, (await log.heads([ALICE]))[0]) == ([], Position(position(one).epoch, 2))
    await log.close()


async def test_an_idle_log_commits_nothing(tmp_path: Path) -> None:
    log = SqliteLog.open(tmp_path / "log.db")
    await append(log, pending_entry())
    before = mark_path(tmp_path / "log.db").read_bytes()
    for now_ms in range(3):
        await log.sweep(now_ms)
        await log.append(Transaction())
    assert mark_path(tmp_path / "log.db").read_bytes() == before
    await log.close()


async def test_a_lost_write_ahead_log_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    log = SqliteLog.open(folder / "log.db")
    (one,) = await append(log, pending_entry())
    await log.close()
    log = SqliteLog.open(folder / "log.db")
    await append(log, pending_entry(text="only in the WAL"))
    crash(log)
    copy_files(folder, tmp_path / "killed")
    shutil.copy(mark_path(folder / "log.db"), tmp_path / "killed")
    (tmp_path / "killed" / "log.db-wal").unlink()
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "killed" / "log.db")
    assert [line["missing_commits"] for line in lines] == [1]
    (head,) = await log.heads([ALICE])
    assert (head.seq, head.epoch != position(one).epoch) == (1, True)
    await log.close()


class KilledLog:
    """The files of a killed router, with some commits in the write-ahead log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []
        self.last = EMPTY

    async def write(self) -> None:
        self.folder.mkdir()
        log = SqliteLog.open(self.folder / "log.db")
        for number in range(40):
            pending = pending_entry(text=f"{number} " + "x" * 700, deliver=number % 3 == 0)
            (pending,) = await append(log, pending)
            self.ids.append(pending.message.id)
            if number == 20:
                await log.close()
                log = SqliteLog.open(self.folder / "log.db")
        self.last = position(pending)
        crash(log)
        for name in ("log.db", "log.db-wal", "log.db.mark"):
            (self.folder / name).rename(self.folder / f"{name}.kept")

    def put_back(self) -> None:
        for name in ("log.db-shm", "log.db-wal", "log.db.lock"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("log.db", "log.db-wal", "log.db.mark"):
            shutil.copy(self.folder / f"{name}.kept", self.folder / name)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> KilledLog:
    killed = KilledLog(tmp_path_factory.mktemp("killed") / "data")
    asyncio.run(killed.write())
    return killed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    name=st.sampled_from(["log.db", "log.db-wal"]),
    is_cut=st.booleans(),
)
async def test_cut_and_changed_files_never_show_wrong_content_or_hide_a_gap(
    killed: KilledLog, data: st.DataObject, name: str, is_cut: bool
) -> None:
    killed.put_back()
    path = killed.folder / name
    size = path.stat().st_size
    at = data.draw(st.integers(0, size - 1))
    with path.open("r+b") as file:
        if is_cut:
            file.truncate(at)
        else:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ data.draw(st.integers(1, 255))]))
    with suppress(BackupFailed):
        check_file(killed.folder / "log.db")
    with suppress(BackupFailed):
        back_up(
            killed.folder / "log.db", killed.folder / "backup.db", force=True, progress=lambda share: None
        )
    try:
        log = SqliteLog.open(killed.folder / "log.db")
    except LogUnavailable:
        return
    try:
        await look_for_lies(log, killed)
    finally:
        await log.close()


async def look_for_lies(log: SqliteLog, killed: KilledLog) -> None:
    """A position past the loss is invalid, or everything is there; no content is wrong; no id is reused."""
    try:
        page = await read_all(log)
        resumed = await read_all(log, after=Position(killed.last.epoch, 30))
    except LogUnavailable:
        return
    for each in page.entries:
        message = Message.FromString(each.body)
        assert message.parts[0].text.text == f"{each.seq - 1} " + "x" * 700
        assert message.id == killed.ids[each.seq - 1]
    if resumed.valid:
        assert [entry.seq for entry in resumed.entries] == list(range(31, 41))
    try:
        (new,) = await append(log, pending_entry(text="new"))
    except LogUnavailable:
        return
    assert new.message.id not in killed.ids


async def test_a_changed_row_is_an_error_that_leaves_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog.open(path)
    entries = await append(log, *(pending_entry(text=f"{n}", deliver=True) for n in range(5)))
    (other,) = await append(log, pending_entry(BOB))
    await append(log, edit(entries[4]))
    await log.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE messages SET body = CAST(replace(hex(body), '32', '33') AS BLOB) WHERE seq = 3")
        db.commit()
    log = SqliteLog.open(path)
    with capture_logs() as lines:
        later = ALL._replace(after=position(entries[2]))
        page, after, intact = await log.read([ALL, later, PageRequest(BOB, 9)])
        assert (page.entries, page.valid, page.damaged_seq) == ([], False, 3)
        assert [entry.seq for entry in after.entries] == [4, 5, 6]
        assert [entry.seq for entry in intact.entries] == [1]
        with pytest.raises(LogDamaged):
            await log.message("acme", entries[2].message.id)
        assert await log.message("acme", other.message.id) is not None
        deliveries = await log.deliveries("acme", "echo", 0, 4)
    assert [each.delivery_id for each in deliveries] == [1, 2, 4, 5]
    assert [(line["topic_id"], line["seq"]) for line in lines] == [(1, 3)]
    await log.close()


async def test_a_damaged_reason_is_not_worth_the_dead_letter(tmp_path: Path) -> None:
    log = SqliteLog.open(tmp_path / "log.db")
    (first,) = await append(log, pending_entry(deliver=True))
    await log.append(Transaction(dead_lettered=[DeadLettered(first.delivery_id, 1, "why")]))
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("UPDATE dead_letters SET reason = CAST(x'7768ff' AS TEXT)")
        db.commit()
    [letter] = await log.dead_letters("acme", "echo", 0, 9)
    assert (letter.reason, letter.message) == ("wh\ufffd", first.stored)
    await log.close()


async def test_a_damaged_file_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog.open(path)
    await append(log, *(pending_entry(text="x" * 300) for _ in range(300)))
    await log.close()
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(60, size // 1024, 7):
            file.seek(page * 1024)
            file.write(b"\xff" * 64)
    with pytest.raises(LogUnavailable, match=r"damaged|malformed"):
        SqliteLog.open(path)


@pytest.mark.parametrize("content", [b"", b"0123456789abcdef 00000000000000000009", b"\xff\xfe"])
async def test_a_damaged_mark_is_not_a_missing_one(tmp_path: Path, content: bytes) -> None:
    """A database without commits and without a mark is new; beside a damaged mark it is what is left."""
    mark_path(tmp_path / "log.db").write_bytes(content)
    with capture_logs() as lines:
        log = SqliteLog.open(tmp_path / "log.db")
    assert len(lines) == (1 if content else 0)
    (new,) = await append(log, pending_entry(deliver=True))
    assert (new.delivery_id > 1) == bool(content)
    await log.close()


async def test_an_entry_that_lost_its_checksum_must_be_readable(tmp_path: Path) -> None:
    """One flipped bit in a row's header turns the checksum into NULL, as older versions wrote it."""
    path = tmp_path / "log.db"
    log = SqliteLog.open(path)
    first, second, _ = await append(log, *(pending_entry(deliver=True) for _ in range(3)))
    await log.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE messages SET crc = NULL, body = substr(body, 1, 20) WHERE seq = 2")
        db.execute("UPDATE messages SET crc = NULL WHERE seq = 3")
        db.commit()
    [problem] = check_file(path)
    assert "entry 2 of log 1 in messages cannot be read" in problem
    log = SqliteLog.open(path)
    with capture_logs():
        assert (await read_all(log)).damaged_seq == 2
        with pytest.raises(LogDamaged):
            await log.message("acme", second.message.id)
        assert [each.delivery_id for each in await log.deliveries("acme", "echo", 0, 9)] == [1, 3]
    assert await log.message("acme", first.message.id) == first.stored
    await log.close()


async def test_a_row_with_values_of_other_types_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog.open(path)
    await append(log, pending_entry(), pending_entry(BOB))
    await log.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE topics SET pruned = 'x' WHERE topic_id = 1")
        db.commit()
    log = SqliteLog.open(path)
    with pytest.raises(LogDamaged):
        await read_all(log)
    (page,) = await log.read([PageRequest(BOB, 9, after=EMPTY)])
    assert len(page.entries) == 1
    await log.close()
