"""Encryption at rest, without an engine: keys, sealed values, reservations, rotation."""

from __future__ import annotations

import base64
import os

import pytest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.log.data_keys import DataKeyError, DataKeys, parse_data_keys
from trunkline_router.log.encryption import (
    LOG_KEY,
    MAX_SEALED,
    OVERHEAD,
    RESERVED_BLOCK,
    CannotDecrypt,
    Encryption,
    SealedTable,
    StoredTenantKey,
    is_sealed,
)

SOURCE = "TRUNKLINE_DATA_KEY"
MESSAGES = SealedTable.MESSAGES


def row(byte: int) -> str:
    """A data key as a row of a file."""
    return base64.b64encode(bytes([byte]) * 32).decode()


def data_keys(*numbers: int) -> DataKeys:
    return parse_data_keys([row(byte) for byte in numbers], SOURCE)


class Database:
    """The stored keys, and an Encryption over them that can be restarted."""

    def __init__(self, keys: DataKeys | None = None) -> None:
        self.rows: dict[tuple[str, int], StoredTenantKey] = {}
        self.data_keys = keys or data_keys(1)
        self.restart()

    def restart(self, keys: DataKeys | None = None) -> None:
        self.encryption = Encryption(keys or self.data_keys)
        self.encryption.load(self.rows.values())

    def reserve(self, *tenants: str, uses: int = 1) -> int:
        """Reserve uses; return the number of rows written."""
        rows = self.encryption.reserve(tenants, uses, 7)
        self.rows |= {each[:2]: each for each in rows}
        self.encryption.reserved(rows)
        return len(rows)

    def rotate(self, keys: DataKeys) -> int:
        rows = self.encryption.rewrap(keys)
        self.rows |= {each[:2]: each for each in rows}
        self.encryption.rewrapped(keys, rows)
        return len(rows)


@pytest.fixture
def database() -> Database:
    database = Database()
    database.reserve("acme", "evil", LOG_KEY)
    return database


# Values


@pytest.mark.parametrize("plain", [b"", b"\0", b"text" * 1000])
def test_a_sealed_value_opens_and_shows_nothing(database: Database, plain: bytes) -> None:
    sealed = database.encryption.seal("acme", MESSAGES, 3, 4, plain)
    assert is_sealed(sealed)
    assert len(sealed) == len(plain) + OVERHEAD
    assert len(plain) < 2 or plain not in sealed
    assert database.encryption.unseal("acme", MESSAGES, 3, 4, sealed) == plain
    database.restart()
    assert database.encryption.unseal("acme", MESSAGES, 3, 4, sealed) == plain


@pytest.mark.parametrize(
    "place", [("evil", 1, 3, 4), ("acme", 2, 3, 4), ("acme", 1, 5, 4), ("acme", 1, 3, 5)]
)
def test_a_value_opens_only_in_its_own_row(database: Database, place: tuple[str, int, int, int]) -> None:
    sealed = database.encryption.seal("acme", MESSAGES, 3, 4, b"text")
    tenant, table, topic_id, seq = place
    with pytest.raises(CannotDecrypt):
        database.encryption.unseal(tenant, SealedTable(table), topic_id, seq, sealed)


def test_a_changed_value_does_not_open(database: Database) -> None:
    sealed = database.encryption.seal("acme", MESSAGES, 3, 4, b"text")
    damaged = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(1, len(sealed))]
    damaged += [sealed[:length] for length in range(1, len(sealed))]
    for each in damaged:
        with pytest.raises(CannotDecrypt):
            database.encryption.unseal("acme", MESSAGES, 3, 4, each)


def test_plain_values_stay_readable(database: Database) -> None:
    settings = TenantSettings(default_agent="echo").SerializeToString()
    assert not is_sealed(settings)
    for plain in (b"", settings):
        assert database.encryption.unseal("acme", SealedTable.TENANTS, 0, 0, plain) == plain


def test_a_forgotten_tenants_values_do_not_open_even_after_it_is_declared_again(database: Database) -> None:
    sealed = database.encryption.seal("acme", MESSAGES, 3, 4, b"text")
    database.encryption.forget("acme")
    for _ in range(2):
        with pytest.raises(CannotDecrypt):
            database.encryption.unseal("acme", MESSAGES, 3, 4, sealed)
        database.reserve("acme")


def test_digests_are_keyed_and_compared_with_plain_ones_too(database: Database) -> None:
    encryption = database.encryption
    [sealed] = encryption._sealed_digests([b"12345678"])
    assert sealed != b"12345678"
    database.restart()
    for stored in (sealed, b"12345678"):
        assert database.encryption.is_same_content(b"12345678", stored)
        assert not database.encryption.is_same_content(b"87654321", stored)


# Nonces


def test_a_key_seals_only_what_was_reserved_and_then_gives_way(database: Database) -> None:
    assert database.reserve("acme", uses=RESERVED_BLOCK) == 0
    database.encryption.seal("acme", MESSAGES, 1, 1, b"text")
    assert database.reserve("acme", uses=RESERVED_BLOCK) == 1
    assert database.reserve("acme", uses=RESERVED_BLOCK) == 0
    stored = database.rows["acme", 1]
    # Until the process ends, what is left counts as used.
    database.restart()
    assert database.reserve("acme") == 1
    assert database.rows["acme", 1].reserved == stored.reserved + RESERVED_BLOCK
    database.rows["acme", 1] = stored._replace(reserved=MAX_SEALED - RESERVED_BLOCK + 1)
    database.restart()
    assert database.reserve("acme") == 1
    assert sorted(database.rows)[-3:] == [("acme", 1), ("acme", 2), ("evil", 1)]
    sealed = [database.encryption.seal("acme", MESSAGES, 1, 1, b"text") for _ in range(2)]
    database.restart()
    assert {database.encryption.unseal("acme", MESSAGES, 1, 1, each) for each in sealed} == {b"text"}


def test_generations_keep_what_the_earlier_ones_sealed(database: Database) -> None:
    old = database.encryption.seal("acme", MESSAGES, 1, 1, b"old")
    database.rows["acme", 1] = database.rows["acme", 1]._replace(reserved=MAX_SEALED)
    database.restart()
    database.reserve("acme")
    new = database.encryption.seal("acme", MESSAGES, 1, 1, b"new")
    assert old[:4] != new[:4]
    database.restart()
    assert [database.encryption.unseal("acme", MESSAGES, 1, 1, each) for each in (old, new)] == [
        b"old",
        b"new",
    ]


def test_nonces_are_never_equal(database: Database) -> None:
    database.reserve("acme", uses=2_000)
    sealed = [database.encryption.seal("acme", MESSAGES, 1, 1, b"text") for _ in range(2_000)]
    assert len({each[4:16] for each in sealed}) == 2_000


# Data keys


def test_keys_are_rewrapped_by_the_first_data_key_and_need_no_other(database: Database) -> None:
    sealed = database.encryption.seal("acme", MESSAGES, 3, 4, b"text")
    before = set(database.rows.values())
    assert database.rotate(data_keys(2, 1)) == 3
    assert database.rotate(data_keys(2, 1)) == 0
    assert not before & set(database.rows.values())
    database.restart(data_keys(2))
    assert database.encryption.unseal("acme", MESSAGES, 3, 4, sealed) == b"text"
    with pytest.raises(DataKeyError):
        database.restart(data_keys(1))


def test_a_missing_or_wrong_data_key_is_named_with_its_setting(database: Database) -> None:
    wanted, wrong = (data_keys(byte).current.key_id for byte in (1, 2))
    with pytest.raises(DataKeyError, match=f"{wanted}: set TRUNKLINE_DATA_KEY or TRUNKLINE_DATA_KEY_FILE"):
        Encryption(None).load(database.rows.values())
    with pytest.raises(DataKeyError, match=f"^{SOURCE}: .*{wanted}, not with {wrong}"):
        database.restart(data_keys(2))


def test_a_wrapped_key_opens_only_for_its_tenant_and_generation(database: Database) -> None:
    stored = database.rows["acme", 1]
    for moved in (stored._replace(tenant="evil"), stored._replace(generation=2)):
        with pytest.raises(DataKeyError, match="was changed"):
            Encryption(data_keys(1)).load([moved])


@pytest.mark.parametrize(
    "rows", [[], [""], ["# none"], ["x"], ["ä"], [row(1)[:-2]], [row(1), "AAAA"], [row(1) + "AAAA"]]
)
def test_an_invalid_data_key_is_refused_without_being_printed(rows: list[str]) -> None:
    with pytest.raises(DataKeyError, match=SOURCE) as refused:
        parse_data_keys(rows, SOURCE)
    assert row(1)[:10] not in str(refused.value)


def test_data_keys_may_be_url_safe_and_stand_between_comments() -> None:
    secret = os.urandom(30) + b"\xfb\xff"
    texts = [encode(secret).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    keys = parse_data_keys(["# first", f" {texts[0]} ", "", texts[1]], SOURCE)
    first, second = (key.key_id for key in keys.keys)
    assert first == second
    assert len(first) == 8
    assert not any(text in repr(keys) for text in texts)
