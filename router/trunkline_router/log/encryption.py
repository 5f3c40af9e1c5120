"""Encrypts tenants' secrets and messages at rest, for every engine.

An engine calls `seal` for what it writes and `unseal` for what it reads. Each tenant has a random key, stored
beside its rows and wrapped by a data key that is not in the database; see data_keys. Without that row, all
that the key sealed is unreadable, which is how a deleted tenant's data is destroyed.

A sealed value is AES-256-GCM: marker, generation of the key, nonce, ciphertext and tag. Serialised messages
never start with the marker, so sealed and plain values coexist in a column. The associated data binds a value
to its tenant, table and row: moved elsewhere, it does not open. An older value of the same row does.

Nonces are 96 random bits. Counters would repeat after a restored backup or a cloned machine, and a repeated
nonce reveals both texts and lets anybody forge; random ones need no state. They are safe for 2^32 values per
key (NIST SP 800-38D, 8.3). A key seals 2^30 at most, when the odds that any two nonces are equal are 2^-37,
and then a new generation follows. The count survives crashes: before a key is used, a block of uses is
reserved on disk, and what is left of the block when the process ends counts as used. A database that has lost
commits forgot reservations, so it seals nothing more with its keys: see forks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from trunkline.v1.tenant_pb2 import TenantSettings

from trunkline_router.log.batch import (
    DELTA_COLUMNS,
    EVENT_COLUMNS,
    KEY_COLUMNS,
    KEY_DIGEST,
    KEY_EPOCH,
    MESSAGE_COLUMNS,
    Batch,
)
from trunkline_router.log.data_keys import KEY_BYTES, NONCE_BYTES, DataKey, DataKeyError, DataKeys
from trunkline_router.log.interface import LogDamaged

#: First bytes of a sealed value: no protobuf field has number 0. The second is the version of the format.
_MARKER = b"\0\1"
_HEADER = Struct(">2sH")
_NONCE_AT = _HEADER.size
_SEALED_AT = _NONCE_AT + NONCE_BYTES
#: Bytes that sealing adds to a value: header, nonce and tag.
OVERHEAD = _SEALED_AT + 16
#: Numbers that identify a row. In the associated data, its table and tenant follow.
_ROW = Struct(">QQ")

#: Values that one generation of a key seals at most.
MAX_SEALED = 1 << 30
#: Uses of a key that are reserved on disk together.
RESERVED_BLOCK = 1 << 20

#: Name of the key that belongs to no tenant. It keys the digests of contents, which outlive their tenant.
LOG_KEY = ""
#: Longer than a digest that is not sealed.
SEALED_DIGEST_BYTES = 9
_BLOCK_BYTES = 16


class SealedTable(IntEnum):
    """Tables with sealed values, as they stand in the associated data."""

    MESSAGES = 1
    EVENTS = 2
    OPEN_DELTAS = 3
    DEAD_LETTERS = 4
    TENANTS = 5


class CannotDecrypt(LogDamaged):
    """A sealed value does not open: it was changed or moved, or its tenant was deleted meanwhile."""


class StoredTenantKey(NamedTuple):
    """One generation of a tenant's key."""

    tenant: str
    generation: int
    #: Id of the data key that wraps it.
    data_key: str
    wrapped: bytes
    #: Upper bound of the values that it has sealed.
    reserved: int
    created_ms: int


class TenantKey:
    """One generation of a tenant's key, ready for use."""

    __slots__ = ("decrypt", "encrypt", "header", "identities", "left", "secret", "stored")

    def __init__(self, stored: StoredTenantKey, secret: bytes) -> None:
        self.stored = stored
        #: Reserved uses that are left; none of those that an earlier process reserved.
        self.left = 0
        self.secret = secret
        aead = AESGCM(secret)
        self.encrypt, self.decrypt = aead.encrypt, aead.decrypt
        self.header = _HEADER.pack(_MARKER, stored.generation)
        #: Table and tenant in the associated data, at the table's number.
        self.identities = [
            bytes((number,)) + stored.tenant.encode() for number in range(len(SealedTable) + 1)
        ]

    def seal(self, table: SealedTable, first: int, second: int, plain: bytes) -> bytes:
        """Encrypt the value of the row that two numbers identify. The use must be reserved."""
        self.left -= 1
        nonce = os.urandom(NONCE_BYTES)
        row = _ROW.pack(first, second) + self.identities[table]
        return self.header + nonce + self.encrypt(nonce, plain, row)

    def unseal(self, table: SealedTable, first: int, second: int, sealed: bytes) -> bytes:
        """Decrypt the value of a row. Raises InvalidTag."""
        row = _ROW.pack(first, second) + self.identities[table]
        return self.decrypt(sealed[_NONCE_AT:_SEALED_AT], sealed[_SEALED_AT:], row)


class Encryption:
    """The keys of all tenants of one log, and the tenants whose messages are encrypted.

    `unseal` and `is_same_content` may be called from any thread, the rest by the one writer, which commits a
    change of keys before it confirms and uses it.
    """

    def __init__(self, data_keys: DataKeys | None) -> None:
        #: The data keys; None if none is configured.
        self.data_keys = data_keys
        #: By tenant and generation.
        self._keys: dict[str, dict[int, TenantKey]] = {}
        #: The newest generations.
        self._newest: dict[str, TenantKey] = {}
        #: Tenants whose messages are sealed.
        self.encrypted_tenants: set[str] = set()

    # Keys

    def load(self, stored: Iterable[StoredTenantKey]) -> None:
        """Take over the keys in the database. Raises DataKeyError if one of them cannot be unwrapped."""
        for each in sorted(stored):
            data_key = self._data_key(each.data_key)
            secret = data_key.unwrap(each.tenant, each.generation, each.wrapped)
            self._add(TenantKey(each, secret))

    def rewrap(self, data_keys: DataKeys) -> list[StoredTenantKey]:
        """Wrap all keys by the current one of these data keys. Returns the rows to commit.

        Confirm with `rewrapped`.
        """
        current = data_keys.current
        rows = []
        for keys in self._keys.values():
            for key in keys.values():
                tenant, generation = key.stored[:2]
                if key.stored.data_key != current.key_id:
                    wrapped = current.wrap(tenant, generation, key.secret)
                    rows.append(key.stored._replace(data_key=current.key_id, wrapped=wrapped))
        return rows

    def rewrapped(self, data_keys: DataKeys, rows: Iterable[StoredTenantKey]) -> None:
        """Use these data keys from now on; the rows are committed."""
        self.data_keys = data_keys
        for row in rows:
            self._keys[row.tenant][row.generation].stored = row

    def reserve(self, tenants: Iterable[str], uses: int, now_ms: int) -> list[StoredTenantKey]:
        """Return the rows to commit before each tenant's key seals so many values; often none.

        Confirm with `reserved`. There must be a data key.
        """
        newest = self._newest
        return [
            self._reservation(tenant, uses, now_ms)
            for tenant in tenants
            if tenant not in newest or newest[tenant].left < uses
        ]

    def _reservation(self, tenant: str, uses: int, now_ms: int) -> StoredTenantKey:
        newest = self._newest.get(tenant)
        block = max(uses, RESERVED_BLOCK)
        if newest is not None and newest.stored.reserved + block <= MAX_SEALED:
            return newest.stored._replace(reserved=newest.stored.reserved + block)
        assert self.data_keys is not None
        generation = newest.stored.generation + 1 if newest is not None else 1
        data_key = self.data_keys.current
        wrapped = data_key.wrap(tenant, generation, os.urandom(KEY_BYTES))
        return StoredTenantKey(tenant, generation, data_key.key_id, wrapped, block, now_ms)

    def reserved(self, rows: Iterable[StoredTenantKey]) -> None:
        """Use what was reserved; the rows are committed."""
        for row in rows:
            key = self._newest.get(row.tenant)
            if key is None or key.stored.generation != row.generation:
                secret = self._data_key(row.data_key).unwrap(row.tenant, row.generation, row.wrapped)
                key = TenantKey(row, secret)
                key.left = row.reserved
                self._add(key)
            else:
                key.left += row.reserved - key.stored.reserved
                key.stored = row

    def _add(self, key: TenantKey) -> None:
        """Add a generation above the others of its tenant."""
        tenant, generation = key.stored[:2]
        self._keys.setdefault(tenant, {})[generation] = key
        self._newest[tenant] = key

    def has_key(self, tenant: str) -> bool:
        """Return whether there is a key of a tenant."""
        return tenant in self._newest

    def secrets(self, tenant: str) -> dict[int, bytes]:
        """Return the secrets of a tenant's keys by generation."""
        return {generation: key.secret for generation, key in self._keys.get(tenant, {}).items()}

    def forget(self, tenant: str) -> None:
        """Drop a tenant whose keys are deleted from the database."""
        self.encrypted_tenants.discard(tenant)
        self._newest.pop(tenant, None)
        self._keys.pop(tenant, None)

    def settings_changed(self, tenant: str, settings: bytes) -> None:
        """Follow a tenant's committed settings."""
        if self.data_keys is not None and TenantSettings.FromString(settings).encrypt_messages:
            self.encrypted_tenants.add(tenant)
        else:
            self.encrypted_tenants.discard(tenant)

    def _data_key(self, key_id: str) -> DataKey:
        if self.data_keys is None:
            raise DataKeyError(
                f"the log is encrypted with data key {key_id}:"
                " set TRUNKLINE_DATA_KEY or TRUNKLINE_DATA_KEY_FILE"
            )
        if key := self.data_keys.find(key_id):
            return key
        given = ", ".join(key.key_id for key in self.data_keys.keys)
        raise DataKeyError(
            f"{self.data_keys.source}: the log is encrypted with data key {key_id}, not with {given}"
        )

    # Values

    def seal(self, tenant: str, table: SealedTable, first: int, second: int, plain: bytes) -> bytes:
        """Encrypt a value with the tenant's newest key; the use must be reserved."""
        return self._newest[tenant].seal(table, first, second, plain)

    def seal_batch(self, batch: Batch) -> None:
        """Encrypt the content in a batch of the tenants that want it, dead letters aside."""
        encrypted = self.encrypted_tenants
        newest = self._newest
        keys = {row: newest[tenant] for row, tenant in batch.tenants.items() if tenant in encrypted}
        if not keys:
            return
        _seal_rows(SealedTable.MESSAGES, batch.messages, MESSAGE_COLUMNS, keys)
        _seal_rows(SealedTable.EVENTS, batch.events, EVENT_COLUMNS, keys)
        _seal_rows(SealedTable.OPEN_DELTAS, batch.deltas, DELTA_COLUMNS, keys)
        for (topic_id, seq), (body, user) in batch.changed.items():
            if key := keys.get(topic_id):
                batch.changed[topic_id, seq] = (key.seal(SealedTable.MESSAGES, topic_id, seq, body), user)
        # Digests would confirm a guess of a short text.
        rows = batch.keys
        if rows:
            epochs = {head.position.epoch for topic, head in batch.heads.items() if topic[0] in encrypted}
            places = [
                start + KEY_DIGEST
                for start in range(0, len(rows), KEY_COLUMNS)
                if rows[start + KEY_EPOCH] in epochs
            ]
            for place, sealed in zip(places, self._sealed_digests([rows[p] for p in places]), strict=True):
                rows[place] = sealed

    def unseal(self, tenant: str, table: SealedTable, first: int, second: int, stored: bytes) -> bytes:
        """Return the plain value of a row, whether it is sealed or not. Raises CannotDecrypt."""
        if self.data_keys is None or not is_sealed(stored):
            return stored
        try:
            if len(stored) >= OVERHEAD:
                marker, generation = _HEADER.unpack_from(stored)
                if marker == _MARKER:
                    return self._keys[tenant][generation].unseal(table, first, second, stored)
        except (InvalidTag, KeyError):
            pass
        row = f"row {first}, {second} in {table.name.lower()} of tenant {tenant}"
        raise CannotDecrypt(f"{row} does not decrypt: it was changed, or its key was deleted")

    def is_same_content(self, digest: bytes, stored: bytes) -> bool:
        """Compare the digest of a repeated entry with the stored one, sealed or not."""
        if self.data_keys is None or len(stored) != SEALED_DIGEST_BYTES:
            return digest == stored
        # Generations above the first came with tenants of other logs: cut short, their digests cannot be
        # encrypted again.
        return any(self._sealed_digests([digest], each) == [stored] for each in self._keys[LOG_KEY])

    def _sealed_digests(self, digests: Sequence[bytes], generation: int = 1) -> list[bytes]:
        """Encrypt each digest as one block of AES, cut short: all with one call, as there may be many."""
        blocks = Cipher(AES(self._keys[LOG_KEY][generation].secret), ECB()).encryptor()
        sealed = blocks.update(b"".join([digest.ljust(_BLOCK_BYTES, b"\0") for digest in digests]))
        return [sealed[at : at + SEALED_DIGEST_BYTES] for at in range(0, len(sealed), _BLOCK_BYTES)]


def is_sealed(stored: bytes) -> bool:
    """Whether a value is sealed."""
    return stored[:1] == b"\0"


def _seal_rows(table: SealedTable, rows: list[Any], columns: int, keys: Mapping[int, TenantKey]) -> None:
    """Seal the last column of rows that start with topic_id and seq.

    Like TenantKey.seal, with one call for all nonces: this runs for every message.
    """
    if not rows:
        return
    pack, number = _ROW.pack, int(table)
    nonces = os.urandom(len(rows) // columns * NONCE_BYTES)
    at = 0
    for start in range(0, len(rows), columns):
        topic_id = rows[start]
        key = keys.get(topic_id)
        if key is None:
            continue
        nonce = nonces[at : at + NONCE_BYTES]
        at += NONCE_BYTES
        key.left -= 1
        last = start + columns - 1
        row = pack(topic_id, rows[start + 1]) + key.identities[number]
        rows[last] = key.header + nonce + key.encrypt(nonce, rows[last], row)
