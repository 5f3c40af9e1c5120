"""Data keys: the keys outside the database that wrap the tenants' keys in it."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12

_WRAPPED = b"trunkline tenant key"


class DataKeyError(Exception):
    """A data key is missing, invalid or the wrong one; the text names settings and key ids, and no key."""


class DataKey:
    """One data key."""

    def __init__(self, secret: bytes) -> None:
        #: Names the key in the database, in logs and in errors.
        self.key_id = sha256(secret).hexdigest()[:8]
        self._aead = AESGCM(secret)

    def wrap(self, tenant: str, generation: int, key: bytes) -> bytes:
        """Encrypt a tenant's key."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, _identity(tenant, generation))

    def unwrap(self, tenant: str, generation: int, wrapped: bytes) -> bytes:
        """Decrypt a tenant's key. Raises DataKeyError if this key did not wrap it for the tenant."""
        try:
            nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
            return self._aead.decrypt(nonce, sealed, _identity(tenant, generation))
        except (InvalidTag, ValueError):
            raise DataKeyError(
                f"the key of tenant {tenant} does not open with data key {self.key_id}: it was changed"
            ) from None

    def __repr__(self) -> str:
        return f"<DataKey {self.key_id}>"


class DataKeys(NamedTuple):
    """The configured data keys: the first wraps, all of them unwrap."""

    keys: tuple[DataKey, ...]
    #: Name of the setting that they come from.
    source: str

    @property
    def current(self) -> DataKey:
        """The key that wraps."""
        return self.keys[0]

    def find(self, key_id: str) -> DataKey | None:
        """Return the key with this id."""
        return next((key for key in self.keys if key.key_id == key_id), None)


def parse_data_keys(rows: Sequence[str], source: str) -> DataKeys:
    """Parse data keys, one per row, each base64 of 32 bytes. Raises DataKeyError, whose text has no key."""
    keys = []
    for number, row in enumerate(rows, 1):
        text = row.strip()
        if not text or text.startswith("#"):
            continue
        try:
            secret = base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise DataKeyError(
                f"{source}: row {number} is not base64 of {KEY_BYTES} bytes;"
                " `openssl rand -base64 32` makes a key"
            )
        keys.append(DataKey(secret))
    if not keys:
        raise DataKeyError(f"{source} holds no key")
    return DataKeys(tuple(keys), source)


def _identity(tenant: str, generation: int) -> bytes:
    return b"\0".join((_WRAPPED, b"%d" % generation, tenant.encode()))
