"""Encryption at rest in the SQLite engine: its files, damaged rows and restored backups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import PageRequest
from trunkline_router.core.values.topics import EMPTY
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import MAX_SEALED
from trunkline_router.log.sqlite.restore import restore

from tests.router.log.engines import BOB, append, pending_entry
from tests.router.log.sealed_storage import TEXT, Folder, page_is_valid, signed, tenant, texts
from tests.router.log.test_encryption import data_keys
from tests.router.log.whole_erasures import erase_tenant, erase_user


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def test_a_deleted_tenants_key_is_in_no_free_page_and_no_write_ahead_log(folder: Folder) -> None:
    log = await folder.open(data_keys(1))
    await log.register(tenant())
    ((wrapped,),) = await folder.sql("SELECT wrapped FROM tenant_keys WHERE tenant = 'acme'")
    await erase_tenant(log)
    assert not [path for path in folder.path.iterdir() if wrapped in path.read_bytes()]
    await log.close()


# Damage


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
    log = await folder.open(data_keys(1))
    await log.register(tenant())
    await append(log, pending_entry(text="one"), pending_entry(text="two"), pending_entry(BOB, text="three"))
    # Without a checksum, which anybody can compute.
    await folder.sql("UPDATE messages SET crc = NULL")
    assert await page_is_valid(log)
    await folder.sql(change)
    assert not await page_is_valid(log)
    assert await texts(log, BOB) == ["three"]
    await log.close()


# Lost commits and backups


async def test_keys_of_a_restored_backup_encrypt_nothing_more(folder: Folder, tmp_path: Path) -> None:
    log = await folder.open(data_keys(1))
    await log.register(tenant())
    room = ("acme", "echo", "web", 2, "room")
    await append(log, signed(pending_entry(room, TEXT)))
    await log.close()
    backup = tmp_path / "backup.db"
    backup.write_bytes(folder.file.read_bytes())
    log = await folder.open(data_keys(1))
    await append(log, pending_entry(room, "of bob", user="bob"))
    await erase_user(log, "alice")
    await log.close()
    report = restore_with(folder, backup, data_keys(1))
    assert any("alice" in each for each in report.reapplied)
    assert {
        used for (used,) in await folder.sql("SELECT reserved FROM tenant_keys WHERE generation = 1")
    } == {MAX_SEALED}
    log = await folder.open(data_keys(1))
    (page,) = await log.read([PageRequest(room, 9, after=EMPTY)])
    assert [Message.FromString(entry.body).author.name for entry in page.entries] == [""]
    await append(log, pending_entry(room, TEXT))
    assert (await texts(log, room))[-1] == TEXT
    await log.close()
    backup.unlink()
    for path in folder.path.glob("log.db.replaced*"):
        path.unlink()


def restore_with(folder: Folder, backup: Path, keys: DataKeys | None) -> Any:
    return restore(folder.file, backup, None, progress=lambda share: None, data_keys=keys)
