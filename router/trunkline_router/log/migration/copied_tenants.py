"""Checks tenants that join others in a log, and copies the keys that encrypt their content."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantSettings

from trunkline_router.core.tenants.unique_settings import UniqueSettings
from trunkline_router.log.data_keys import KEY_BYTES, DataKeyError, DataKeys
from trunkline_router.log.encryption import (
    LOG_KEY,
    MAX_SEALED,
    Encryption,
    SealedTable,
    StoredTenantKey,
    is_sealed,
)
from trunkline_router.log.migration.copied_log import CopiedLog, CopyFailed
from trunkline_router.log.migration.copied_tables import (
    AUDIT,
    TABLES,
    TENANT_KEYS,
    TENANTS,
    CopiedTable,
    Row,
    RowScope,
)

_OF_TENANTS = [table for table in TABLES if table.scope is RowScope.TENANT and table is not AUDIT]


class CopiedTenants:
    """Tenants of a copy, between its two logs."""

    def __init__(self, source: CopiedLog, target: CopiedLog, data_keys: DataKeys | None) -> None:
        self._source = source
        self._target = target
        self._data_keys = data_keys

    async def check(self, tenants: Iterable[str]) -> None:
        """Check that tenants may join those of the target. Raises CopyFailed."""
        joining = await _settings(self._source, self._data_keys)
        for tenant in tenants:
            if not any([await self._source.count(table, tenant) for table in _OF_TENANTS]):
                raise CopyFailed(f"{self._source.describe()} has no tenant {tenant}")
            if any([await self._target.count(table, tenant) for table in _OF_TENANTS]):
                raise CopyFailed(f"{self._target.describe()} has a tenant {tenant} already")
        unique = UniqueSettings()
        for name, settings in (await _settings(self._target, self._data_keys)).items():
            unique.put(name, settings)
        try:
            unique.check({name: joining[name] for name in tenants if name in joining})
        except Refused as refused:
            raise CopyFailed(f"the tenants cannot be together: {refused}") from None

    async def load_keys(self, encryption: Encryption, tenants: list[str] | None, *, needs_keys: bool) -> None:
        """Load the source's keys. Raises DataKeyError.

        Without a data key, what is encrypted can be copied as it is, but cannot be given other ids.
        """
        wanted = None if tenants is None else {LOG_KEY, *tenants}
        stored = await _stored_keys(self._source)
        if self._data_keys is not None or needs_keys:
            encryption.load([each for each in stored if wanted is None or each.tenant in wanted])
            for tenant in tenants or ():
                # With the key that an interrupted copy made.
                found = await _rows(self._target, TENANT_KEYS, tenant)
                await self.load_new_key(encryption, found)

    async def load_new_key(self, encryption: Encryption, rows: Iterable[Row]) -> None:
        """Encrypt with the newest of these keys."""
        for row in sorted(rows):
            stored = StoredTenantKey(*row)
            if stored.generation not in encryption.secrets(stored.tenant) and encryption.data_keys:
                encryption.load([stored])

    async def keys(self, tenant: str, *, is_sealed_again: bool) -> list[Row]:
        """Return a tenant's keys for the target, with a new one if values are to be encrypted again.

        That one counts as used up, so that a router makes another.
        """
        rows = await _rows(self._source, TENANT_KEYS, tenant)
        if rows and is_sealed_again:
            assert self._data_keys is not None
            current = self._data_keys.current
            generation = StoredTenantKey(*rows[-1]).generation + 1
            wrapped = current.wrap(tenant, generation, os.urandom(KEY_BYTES))
            now_ms = time.time_ns() // 1_000_000
            rows.append((tenant, generation, current.key_id, wrapped, MAX_SEALED, now_ms))
        return rows

    async def highest_log_key(self) -> int:
        """Return the highest generation of the target's key of digests; 0 without one."""
        return max([row[1] for row in await _rows(self._target, TENANT_KEYS, LOG_KEY)], default=0)

    async def log_keys(self, encryption: Encryption) -> list[Row]:
        """Return the source's keys of digests that the target lacks. Raises DataKeyError.

        Digests cannot be encrypted again: a router compares those of repeated requests with each key.
        """
        sources = await _rows(self._source, TENANT_KEYS, LOG_KEY)
        targets = await _rows(self._target, TENANT_KEYS, LOG_KEY)
        wrapped = {row[3] for row in targets}
        sources = [row for row in sources if row[3] not in wrapped]
        if not sources or not targets:
            return sources
        if self._data_keys is None:
            raise DataKeyError(
                "both logs have a key of digests: set TRUNKLINE_DATA_KEY or TRUNKLINE_DATA_KEY_FILE"
            )
        known = Encryption(self._data_keys)
        known.load([StoredTenantKey(*row) for row in targets])
        current, highest = self._data_keys.current, targets[-1][1]
        missing = [
            (secret, StoredTenantKey(*row))
            for row in sources
            if (secret := encryption.secrets(LOG_KEY)[row[1]]) not in known.secrets(LOG_KEY).values()
        ]
        return [
            tuple(
                key._replace(
                    generation=generation,
                    data_key=current.key_id,
                    wrapped=current.wrap(LOG_KEY, generation, secret),
                )
            )
            for generation, (secret, key) in enumerate(missing, highest + 1)
        ]

    async def data_key_ids(self) -> list[str]:
        """Return the ids of the data keys that open the target."""
        return sorted({each.data_key for each in await _stored_keys(self._target)})


async def _rows(log: CopiedLog, table: CopiedTable, tenant: str | None) -> list[Row]:
    return [row async for piece in log.pieces(table, tenant, None) for row in piece.rows]


async def _stored_keys(log: CopiedLog) -> list[StoredTenantKey]:
    return [StoredTenantKey(*row) for row in await _rows(log, TENANT_KEYS, None)]


async def _settings(log: CopiedLog, data_keys: DataKeys | None) -> dict[str, TenantSettings]:
    """Return the settings of all tenants. Raises DataKeyError."""
    encryption = Encryption(data_keys)
    stored = {row[0]: row[2] for row in await _rows(log, TENANTS, None)}
    if any(map(is_sealed, stored.values())):
        encryption.load(await _stored_keys(log))
    return {
        tenant: TenantSettings.FromString(encryption.unseal(tenant, SealedTable.TENANTS, 0, 0, settings))
        for tenant, settings in stored.items()
    }
