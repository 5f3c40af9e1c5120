"""Commits the keys of tenants before the writer uses them, and encrypts what it writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.log.batch import DEAD_LETTER_COLUMNS, Batch
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import LOG_KEY, Encryption, StoredTenantKey
from trunkline_router.log.sealing import (
    follow_settings,
    seal_content,
    seal_settings,
    seal_tenants,
    tenants_to_seal,
    uses_of,
)
from trunkline_router.log.sqlite.tenant_key_rows import (
    read_tenant_keys,
    tenants_of_deliveries,
    write_tenant_keys,
)
from trunkline_router.log.sqlite.tenant_rows import read_stored_settings, write_settings


class KeyStore:
    """The keys of one file, used on its writer thread.

    `transaction` enters a transaction of the writer. Keys are committed in one of their own, before the one
    that uses them.
    """

    def __init__(
        self,
        encryption: Encryption,
        transaction: Callable[[], AbstractContextManager[sqlite3.Connection]],
        now_ms: Callable[[], int],
    ) -> None:
        self._encryption = encryption
        self._transaction = transaction
        self._now_ms = now_ms

    def open(self) -> bool:
        """Load all keys, wrap them by the current data key, and encrypt settings that are still plain.

        Returns whether there were plain ones. Raises DataKeyError if a data key is missing.
        """
        encryption = self._encryption
        with self._transaction() as db:
            encryption.load(read_tenant_keys(db))
            stored = read_stored_settings(db)
        if encryption.data_keys is None:
            return False
        self.rewrap(encryption.data_keys)
        self.reserve([LOG_KEY], 0)
        plain = follow_settings(encryption, stored)
        if plain:
            self.reserve(plain)
            with self._transaction() as db:
                sealed = {tenant: seal_settings(encryption, tenant, value) for tenant, value in plain.items()}
                write_settings(db, sealed)
        return bool(plain)

    def rewrap(self, data_keys: DataKeys) -> int:
        """Wrap all keys by the current one of these data keys. Returns the number of keys that were not."""
        rows = self._encryption.rewrap(data_keys)
        self._write(rows)
        self._encryption.rewrapped(data_keys, rows)
        return len(rows)

    def reserve(self, tenants: Collection[str], uses: int = 1) -> None:
        """Let each tenant's key encrypt so many values; writes only once in a million uses."""
        rows = self._encryption.reserve(tenants, uses, self._now_ms())
        self._write(rows)
        self._encryption.reserved(rows)

    def seal_registration(self, change: Registration) -> list[StoredTenant]:
        """Return the tenants to write, with encrypted settings if there is a data key."""
        if self._encryption.data_keys is None:
            return change.tenants
        self.reserve([each.tenant for each in change.tenants])
        return seal_tenants(self._encryption, change.tenants)

    def registered(self, change: Registration) -> None:
        """The change is committed: follow its settings."""
        for each in change.tenants:
            self._encryption.settings_changed(each.tenant, each.settings)

    def seal_batch(self, batch: Batch) -> None:
        """Encrypt the content in a batch of the tenants that want it."""
        if not self._encryption.encrypted_tenants:
            return
        dead: dict[int, str] = {}
        if batch.dead_lettered:
            with self._transaction() as db:
                dead = tenants_of_deliveries(db, batch.dead_lettered[::DEAD_LETTER_COLUMNS])
        tenants = tenants_to_seal(self._encryption, batch, dead)
        if tenants:
            self.reserve(tenants, uses_of(batch))
            seal_content(self._encryption, batch, tenants, dead)

    def _write(self, rows: list[StoredTenantKey]) -> None:
        if rows:
            with self._transaction() as db:
                write_tenant_keys(db, rows)
