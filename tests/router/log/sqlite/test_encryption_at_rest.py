"""The SQLite engine with data keys: what its files show, and what happens without the keys."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.message_pb2 import Change, Message
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings, VerificationKey
from trunkline_router.core.values.log_records import (
    AppendResult,
    Checkpoint,
    DeadLettered,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
)
from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.core.values.topics import EMPTY
from trunkline_router.log.data_keys import DataKeyError, DataKeys
from trunkline_router.log.encryption import MAX_SEALED
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.log.sqlite.restore import restore

from tests.router.log.engines import (
    ALICE,
    BOB,
    NOW_MS,
    OTHER_TENANT,
    a_key,
    append,
    deltas,
    edit,
    pending_entry,
    position,
    read,
)
from tests.router.log.test_encryption import data_keys
from tests.router.log.whole_erasures import erase_tenant, erase_user

TEXT = "what only the reader may know"
SECRET = "a-secret-that-signs-tokens"
WORKER = Producer("worker", 1)


def settings(*, encrypted: bool) -> bytes:
    key = VerificationKey(kid="k", algorithm="HS256", jwk=SECRET)
    auth = ClientAuth(keys=[key])
    return TenantSettings(client_auth=auth, encrypt_messages=encrypted).SerializeToString()


def tenant(name: str = "acme", *, encrypted: bool = True) -> Registration:
    return Registration([StoredTenant(name, 1, settings(encrypted=encrypted), NOW_MS, NOW_MS)])


class Folder:
    """A folder with a log that is opened and closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "log.db"

    def open(self, keys: DataKeys | None = None) -> SqliteLog:
        return SqliteLog.open(self.file, data_keys=keys, clock=lambda: NOW_MS)

    def holds(self, *texts: str) -> list[str]:
        """Those of the texts that any file contains."""
        content = b"".join(path.read_bytes() for path in self.path.iterdir())
        return [text for text in texts if text.encode() in content]

    def sql(self, text: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.file)) as db, db:
            return db.execute(text, values).fetchall()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def signed(entry: PendingEntry) -> PendingEntry:
    """The entry with a name and an attribute as secret as its text."""
    entry.message.author.name = f"{TEXT} name"
    entry.message.attributes["mood"] = f"{TEXT} attribute"
    return entry


async def write_everything(log: SqliteLog) -> PendingEntry:
    """Write the text to every table that holds content. Returns the first message."""
    one, dead, streamed = await append(
        log,
        signed(pending_entry(text=TEXT, deliver=True, key=a_key(), digest=b"12345678")),
        signed(pending_entry(text=TEXT, deliver=True)),
        signed(pending_entry(text=TEXT, producer=WORKER)),
    )
    change = edit(one, f"{TEXT} edited")
    assert change.change is not None
    change.change.author.name = f"{TEXT} editor"
    change.change.error.message = f"{TEXT} error"
    await append(log, change)
    await log.append(
        Transaction(
            checkpoints=[Checkpoint(ALICE, streamed.position.seq, WORKER, deltas(TEXT, TEXT))],
            dead_lettered=[DeadLettered(dead.delivery_id, 3, f"{TEXT} reason")],
        )
    )
    return one


async def texts(log: SqliteLog, topic: Any = ALICE) -> list[str]:
    (page,) = await log.read([PageRequest(topic, 100, after=EMPTY, messages_only=True)])
    return [Message.FromString(entry.body).parts[0].text.text for entry in page.entries]


# The files


async def test_files_show_no_content_and_readers_all_of_it(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    one = await write_everything(log)
    assert folder.holds(TEXT, SECRET) == []
    for _ in range(2):
        assert await texts(log) == [f"{TEXT} edited", TEXT, TEXT]
        (page,) = await log.read([PageRequest(ALICE, 100, after=EMPTY)])
        change = Change.FromString(page.entries[-1].body)
        assert (change.author.name, change.error.message) == (f"{TEXT} editor", f"{TEXT} error")
        assert change.message.parts[0].text.text == f"{TEXT} edited"
        stored = await log.message("acme", one.message.id)
        assert stored is not None
        assert Message.FromString(stored).attributes["mood"] == f"{TEXT} attribute"
        (delivery,) = await log.deliveries("acme", "echo", 0, 9)
        assert TEXT.encode() in delivery.message
        (letter,) = await log.dead_letters("acme", "echo", 0, 9)
        assert letter.reason == f"{TEXT} reason"
        assert TEXT.encode() in letter.message
        (opened,) = await log.open_messages()
        assert opened.deltas == [deltas(TEXT, TEXT)]
        assert (await log.registered()).tenants == tenant().tenants
        await log.close()
        assert folder.holds(TEXT, SECRET) == []
        log = folder.open(data_keys(1))
    await log.close()


async def test_without_a_data_key_the_same_files_show_everything(folder: Folder) -> None:
    """Proves that the test above would notice."""
    log = folder.open()
    await log.register(tenant())
    await write_everything(log)
    assert len(folder.holds(*(f"{TEXT}{what}" for what in ("", " name", " edited", " reason")), SECRET)) == 5
    await log.close()


async def test_only_tenants_that_want_it_have_their_messages_encrypted(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant("acme", encrypted=False))
    await log.register(tenant("evil"))
    await append(log, pending_entry(text="acme's"), pending_entry(OTHER_TENANT, text="evil's"))
    await log.register(tenant("acme"))
    await append(log, pending_entry(text="acme's later"), pending_entry(BOB, text="another of acme"))
    await log.register(tenant("acme", encrypted=False))
    await append(log, pending_entry(text="acme's last"))
    assert await texts(log) == ["acme's", "acme's later", "acme's last"]
    await log.close()
    assert folder.holds("acme's last", "evil's", "acme's later", "another of acme", SECRET) == ["acme's last"]
    rows = folder.sql("SELECT tenant, seq, encrypted FROM conversation_log ORDER BY tenant, message_id, seq")
    assert sorted(rows) == [("acme", 1, 0), ("acme", 1, 1), ("acme", 2, 1), ("acme", 3, 0), ("evil", 1, 1)]


async def test_a_data_key_given_later_leaves_no_secret_and_the_old_messages(folder: Folder) -> None:
    log = folder.open()
    await log.register(tenant(encrypted=False))
    (first,) = await append(log, pending_entry(text="plain", key=a_key(), digest=b"12345678"))
    await log.close()
    assert folder.holds(SECRET) == [SECRET]
    log = folder.open(data_keys(1))
    assert folder.holds(SECRET) == []
    await log.register(tenant())
    await append(log, pending_entry(text=TEXT))
    assert await texts(log) == ["plain", TEXT]
    repeat = pending_entry(text="plain", key=first.key, digest=b"12345678")
    other = pending_entry(text="other", key=first.key, digest=b"87654321")
    assert [each.result for each in await append(log, repeat, other)] == [
        AppendResult.DUPLICATE,
        AppendResult.MISMATCH,
    ]
    await log.close()
    assert folder.holds(SECRET, TEXT) == []


async def test_repeats_are_recognised_by_digests_that_need_the_key(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    key = a_key()
    await append(log, pending_entry(key=key, digest=b"12345678"))
    await log.close()
    assert folder.sql("SELECT length(digest), digest = ? FROM recent_keys", b"12345678") == [(9, 0)]
    log = folder.open(data_keys(1))
    for digest, result in ((b"12345678", AppendResult.DUPLICATE), (b"87654321", AppendResult.MISMATCH)):
        (repeat,) = await append(log, pending_entry(key=key, digest=digest))
        assert repeat.result is result
    await log.close()


# Erasure


async def test_recalls_and_erasures_of_users_leave_nothing_that_names_them(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    one = signed(pending_entry(("acme", "echo", "web", 2, "room"), TEXT))
    await append(log, one)
    change = edit(one)
    assert change.change is not None
    change.change.author.user, change.change.author.name = "alice", "Alice"
    await append(log, change, read(one.topic, position(one), "alice"))
    erased = await erase_user(log, "alice")
    assert erased.messages == 1
    (page,) = await log.read([PageRequest(one.topic, 100, after=EMPTY)])
    assert not [entry for entry in page.entries if b"alice" in entry.body or b"Alice" in entry.body]
    assert folder.sql("SELECT DISTINCT hex(substr(body, 1, 1)) FROM messages") == [("00",)]
    assert folder.sql("SELECT DISTINCT hex(substr(body, 1, 1)) FROM events") == [("00",)]
    await log.close()


async def test_deleting_a_tenant_destroys_its_key(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    await log.register(tenant("evil"))
    await write_everything(log)
    wrapped = folder.sql("SELECT wrapped FROM tenant_keys WHERE tenant = 'acme'")[0][0]
    sealed = folder.sql("SELECT body FROM messages")
    await erase_tenant(log)
    assert {name for (name,) in folder.sql("SELECT tenant FROM tenant_keys")} == {"", "evil"}
    # Neither a free page nor the write-ahead log holds it.
    assert not [path for path in folder.path.iterdir() if wrapped in path.read_bytes()]
    await log.close()
    log = folder.open(data_keys(1))
    await log.register(tenant())
    (new,) = await append(log, pending_entry(text=TEXT))
    # Rows of the former tenant do not open with the new key.
    folder.sql("UPDATE messages SET body = ?, crc = NULL", sealed[0][0])
    assert await page_is_valid(log) is False
    assert new.position.seq == 1
    await log.close()


# Damage


async def page_is_valid(log: SqliteLog, topic: Any = ALICE) -> bool:
    (page,) = await log.read([PageRequest(topic, 100, after=EMPTY)])
    assert page.valid or page.damaged_seq
    return page.valid


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE messages SET body = (SELECT body FROM messages WHERE seq = 2) WHERE topic_id = 1 AND seq = 1",
        "UPDATE messages SET body = substr(body, 1, length(body) - 1) WHERE topic_id = 1 AND seq = 1",
        "UPDATE messages SET body = (SELECT body FROM messages WHERE topic_id = 2) WHERE topic_id = 1",
    ],
    ids=["swapped", "cut", "moved"],
)
async def test_a_changed_or_moved_row_is_damaged_and_costs_no_other_log(folder: Folder, change: str) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    await append(log, pending_entry(text="one"), pending_entry(text="two"), pending_entry(BOB, text="three"))
    # Without a checksum, which anybody can compute.
    folder.sql("UPDATE messages SET crc = NULL")
    assert await page_is_valid(log)
    folder.sql(change)
    assert not await page_is_valid(log)
    assert await texts(log, BOB) == ["three"]
    await log.close()


# Keys


async def opened_once(folder: Folder) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    await append(log, pending_entry(text=TEXT))
    await log.close()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (None, r"data key [0-9a-f]{8}: set TRUNKLINE_DATA_KEY or TRUNKLINE_DATA_KEY_FILE"),
        (data_keys(2), r"^TRUNKLINE_DATA_KEY: .* data key [0-9a-f]{8}, not with [0-9a-f]{8}"),
    ],
)
async def test_a_missing_or_wrong_key_opens_nothing_and_changes_nothing(
    folder: Folder, keys: DataKeys | None, problem: str
) -> None:
    await opened_once(folder)
    for _ in range(2):
        with pytest.raises(DataKeyError, match=problem):
            folder.open(keys)
    log = folder.open(data_keys(1))
    assert await texts(log) == [TEXT]
    await log.close()


@pytest.mark.parametrize("running", [True, False])
async def test_data_keys_are_rotated_with_and_without_a_restart(folder: Folder, running: bool) -> None:
    await opened_once(folder)
    log = folder.open(data_keys(1) if running else data_keys(2, 1))
    if running:
        assert await log.use_data_keys(data_keys(2, 1)) == 2
        assert await log.use_data_keys(data_keys(2, 1)) == 0
    await append(log, pending_entry(text="later"))
    await log.register(tenant("new"))
    await log.close()
    assert folder.sql("SELECT DISTINCT data_key FROM tenant_keys") == [(data_keys(2).current.key_id,)]
    log = folder.open(data_keys(2))
    assert await texts(log) == [TEXT, "later"]
    await log.close()


async def test_a_key_is_used_only_after_its_uses_are_on_disk(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_router.log.encryption.RESERVED_BLOCK", 4)
    monkeypatch.setattr("trunkline_router.log.encryption.MAX_SEALED", 40)
    log = folder.open(data_keys(1))
    await log.register(tenant())
    encryption = log._encryption
    for _ in range(30):
        await append(log, pending_entry(text=TEXT), pending_entry(text=TEXT))
        for name, generation, reserved in folder.sql("SELECT tenant, generation, reserved FROM tenant_keys"):
            assert 0 <= encryption._keys[name][generation].left <= reserved <= 40
    assert len(encryption._keys["acme"]) >= 2
    await log.close()
    log = folder.open(data_keys(1))
    assert await texts(log) == [TEXT] * 60
    await log.close()


# Lost commits and backups


async def test_keys_of_a_restored_backup_encrypt_nothing_more(folder: Folder, tmp_path: Path) -> None:
    log = folder.open(data_keys(1))
    await log.register(tenant())
    room = ("acme", "echo", "web", 2, "room")
    await append(log, signed(pending_entry(room, TEXT)))
    await log.close()
    backup = tmp_path / "backup.db"
    backup.write_bytes(folder.file.read_bytes())
    log = folder.open(data_keys(1))
    await append(log, pending_entry(room, "of bob", user="bob"))
    await erase_user(log, "alice")
    await log.close()
    report = restore_with(folder, backup, data_keys(1))
    assert any("alice" in each for each in report.reapplied)
    assert {used for (used,) in folder.sql("SELECT reserved FROM tenant_keys WHERE generation = 1")} == {
        MAX_SEALED
    }
    log = folder.open(data_keys(1))
    (page,) = await log.read([PageRequest(room, 9, after=EMPTY)])
    assert [Message.FromString(entry.body).author.name for entry in page.entries] == [""]
    await append(log, pending_entry(room, TEXT))
    assert (await texts_of(log, room))[-1] == TEXT
    await log.close()
    backup.unlink()
    for path in folder.path.glob("log.db.replaced*"):
        path.unlink()


def restore_with(folder: Folder, backup: Path, keys: DataKeys | None) -> Any:
    return restore(folder.file, backup, None, progress=lambda share: None, data_keys=keys)


async def texts_of(log: SqliteLog, topic: Any) -> list[str]:
    (page,) = await log.read([PageRequest(topic, 100, after=EMPTY, messages_only=True)])
    return ["".join(part.text.text for part in Message.FromString(e.body).parts) for e in page.entries]
