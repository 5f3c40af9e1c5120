"""Encryption at rest, with each engine: what the storage shows, and what happens without the keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from trunkline.v1.message_pb2 import Change, Message
from trunkline_router.core.values.log_records import AppendResult, PageRequest
from trunkline_router.core.values.topics import EMPTY
from trunkline_router.log.data_keys import DataKeyError, DataKeys
from trunkline_router.log.interface import LogDamaged
from trunkline_runtime.process import StartError

from tests.router.log.engines import (
    ALICE,
    BOB,
    OTHER_TENANT,
    a_key,
    append,
    deltas,
    edit,
    pending_entry,
    position,
    read,
)
from tests.router.log.sealed_storage import (
    SECRET,
    TEXT,
    Folder,
    Schema,
    Storage,
    page_is_valid,
    signed,
    tenant,
    texts,
    write_everything,
)
from tests.router.log.test_encryption import data_keys
from tests.router.log.whole_erasures import erase_tenant, erase_user
from tests.support.patience import patient


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "sqlite":
        return Folder(tmp_path)
    return Schema(request.getfixturevalue("postgres_schema"))


# The storage


async def test_the_storage_shows_no_content_and_readers_all_of_it(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    one = await write_everything(log)
    assert await storage.holds(TEXT, SECRET) == []
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
        assert await storage.holds(TEXT, SECRET) == []
        log = await storage.open(data_keys(1))
    await log.close()


async def test_without_a_data_key_the_same_storage_shows_everything(storage: Storage) -> None:
    """Proves that the test above would notice."""
    log = await storage.open()
    await log.register(tenant())
    await write_everything(log)
    assert (
        len(await storage.holds(*(f"{TEXT}{what}" for what in ("", " name", " edited", " reason")), SECRET))
        == 5
    )
    await log.close()


async def test_only_tenants_that_want_it_have_their_messages_encrypted(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant("acme", encrypted=False))
    await log.register(tenant("evil"))
    await append(log, pending_entry(text="acme's"), pending_entry(OTHER_TENANT, text="evil's"))
    await log.register(tenant("acme"))
    await append(log, pending_entry(text="acme's later"), pending_entry(BOB, text="another of acme"))
    await log.register(tenant("acme", encrypted=False))
    await append(log, pending_entry(text="acme's last"))
    assert await texts(log) == ["acme's", "acme's later", "acme's last"]
    await log.close()
    assert await storage.holds("acme's last", "evil's", "acme's later", "another of acme", SECRET) == [
        "acme's last"
    ]
    rows = await storage.sql(
        "SELECT tenant, seq, encrypted FROM conversation_log ORDER BY tenant, message_id, seq"
    )
    assert sorted(rows) == [("acme", 1, 0), ("acme", 1, 1), ("acme", 2, 1), ("acme", 3, 0), ("evil", 1, 1)]


async def test_a_data_key_given_later_leaves_no_secret_and_the_old_messages(storage: Storage) -> None:
    log = await storage.open()
    await log.register(tenant(encrypted=False))
    (first,) = await append(log, pending_entry(text="plain", key=a_key(), digest=b"12345678"))
    await log.close()
    assert await storage.holds(SECRET) == [SECRET]
    log = await storage.open(data_keys(1))
    assert await storage.holds(SECRET) == []
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
    assert await storage.holds(SECRET, TEXT) == []


async def test_repeats_are_recognised_by_digests_that_need_the_key(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    key = a_key()
    await append(log, pending_entry(key=key, digest=b"12345678"))
    await log.close()
    (stored,) = await storage.digests()
    assert len(stored) == 9
    assert not stored.startswith(b"12345678")
    log = await storage.open(data_keys(1))
    for digest, result in ((b"12345678", AppendResult.DUPLICATE), (b"87654321", AppendResult.MISMATCH)):
        (repeat,) = await append(log, pending_entry(key=key, digest=digest))
        assert repeat.result is result
    await log.close()


# Erasure


async def test_recalls_and_erasures_of_users_leave_nothing_that_names_them(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
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
    assert await storage.first_bytes("messages") == {0}
    assert await storage.first_bytes("events") == {0}
    await log.close()


async def test_deleting_a_tenant_destroys_its_key(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    await log.register(tenant("evil"))
    await write_everything(log)
    sealed = (await storage.sql("SELECT body FROM messages"))[0][0]
    await erase_tenant(log)
    assert {name for (name,) in await storage.sql("SELECT tenant FROM tenant_keys")} == {"", "evil"}
    await log.close()
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    (new,) = await append(log, pending_entry(text=TEXT))
    # Rows of the former tenant do not open with the new key.
    await storage.replace_bodies(sealed)
    assert await page_is_valid(log) is False
    assert new.position.seq == 1
    await log.close()


# Keys


async def opened_once(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
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
    storage: Storage, keys: DataKeys | None, problem: str
) -> None:
    await opened_once(storage)
    for _ in range(2):
        with pytest.raises((DataKeyError, StartError), match=problem):
            await storage.open(keys)
    log = await storage.open(data_keys(1))
    assert await texts(log) == [TEXT]
    await log.close()


async def test_settings_that_do_not_decrypt_are_reported_at_once(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    await log.register(tenant("evil"))
    await log.close()
    moved = "(SELECT settings FROM tenants WHERE tenant = 'evil')"
    await storage.sql(f"UPDATE tenants SET settings = {moved} WHERE tenant = 'acme'")
    with pytest.raises((LogDamaged, StartError), match="of tenant acme does not decrypt"):
        async with asyncio.timeout(patient(10)):
            await storage.open(data_keys(1))


@pytest.mark.parametrize("running", [True, False])
async def test_data_keys_are_rotated_with_and_without_a_restart(storage: Storage, running: bool) -> None:
    await opened_once(storage)
    log = await storage.open(data_keys(1) if running else data_keys(2, 1))
    if running:
        assert await log.use_data_keys(data_keys(2, 1)) == 2
        assert await log.use_data_keys(data_keys(2, 1)) == 0
    await append(log, pending_entry(text="later"))
    await log.register(tenant("new"))
    await log.close()
    assert await storage.sql("SELECT DISTINCT data_key FROM tenant_keys") == [(data_keys(2).current.key_id,)]
    log = await storage.open(data_keys(2))
    assert await texts(log) == [TEXT, "later"]
    await log.close()


async def test_a_key_is_used_only_after_its_uses_are_on_disk(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_router.log.encryption.RESERVED_BLOCK", 4)
    monkeypatch.setattr("trunkline_router.log.encryption.MAX_SEALED", 40)
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    encryption = log._encryption  # type: ignore[attr-defined]
    for _ in range(30):
        await append(log, pending_entry(text=TEXT), pending_entry(text=TEXT))
        for name, generation, reserved in await storage.sql(
            "SELECT tenant, generation, reserved FROM tenant_keys"
        ):
            assert 0 <= encryption._keys[name][generation].left <= reserved <= 40
    assert len(encryption._keys["acme"]) >= 2
    await log.close()
    log = await storage.open(data_keys(1))
    assert await texts(log) == [TEXT] * 60
    await log.close()


async def test_calls_at_the_same_time_make_one_key_for_a_tenant(storage: Storage) -> None:
    log = await storage.open(data_keys(1))
    await log.register(tenant())
    for round_number in range(5):
        names = [f"tenant{round_number}-{number}" for number in range(3)]
        await asyncio.gather(
            *(log.register(tenant(name)) for name in names * 2),
            append(log, pending_entry(text=TEXT)),
            log.use_data_keys(data_keys(2 + round_number, 1)),
        )
    keys = await storage.sql("SELECT tenant, generation FROM tenant_keys")
    assert sorted(keys) == sorted({*keys})
    assert {generation for _, generation in keys} == {1}
    registered = await log.registered()
    assert len(registered.tenants) == 16
    await log.close()
    log = await storage.open(data_keys(6))
    assert await log.registered() == registered
    assert await texts(log) == [TEXT] * 5
    await log.close()
