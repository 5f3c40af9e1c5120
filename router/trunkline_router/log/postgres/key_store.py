"""Commits the keys of tenants before they are used, and encrypts what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.log.batch import DEAD_LETTER_COLUMNS, Batch
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import LOG_KEY, Encryption, StoredTenantKey
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.sealing import (
    follow_settings,
    seal_content,
    seal_settings,
    seal_tenants,
    tenants_to_seal,
    uses_of,
)

_READ_KEYS = "SELECT tenant, generation, data_key, wrapped, reserved, created_ms FROM tenant_keys"
_WRITE_KEYS = """
    keys AS (
        INSERT INTO tenant_keys (tenant, generation, data_key, wrapped, reserved, created_ms)
        SELECT u.* FROM fence,
            unnest($3::text[], $4::bigint[], $5::text[], $6::bytea[], $7::bigint[], $8::bigint[]) AS u
        ON CONFLICT (tenant, generation) DO UPDATE SET
            data_key = excluded.data_key, wrapped = excluded.wrapped,
            reserved = excluded.reserved, created_ms = excluded.created_ms
    )
"""
_READ_SETTINGS = "SELECT tenant, settings FROM tenants"
_WRITE_SETTINGS = """
    sealed AS (
        UPDATE tenants AS t SET settings = u.settings
        FROM fence, unnest($3::text[], $4::bytea[]) AS u (tenant, settings)
        WHERE t.tenant = u.tenant
    )
"""
_TENANTS_OF_DELIVERIES = "SELECT delivery_id, tenant FROM deliveries WHERE delivery_id = ANY($1::bigint[])"


class KeyStore:
    """The keys of one log. Keys are committed by a write of their own, before the one that uses them.

    Unlike the writes of the log, calls may be concurrent: registrations do not wait for appends.
    """

    def __init__(self, encryption: Encryption, writer: FencedWriter, now_ms: Callable[[], int]) -> None:
        self.encryption = encryption
        self._writer = writer
        self._now_ms = now_ms
        #: Held while keys change, and from the use of a key for settings until their commit. Its holders are
        #: not interrupted: what is known of keys must be what is committed.
        self.lock = asyncio.Lock()

    async def open(self) -> None:
        """Load all keys, wrap them by the current data key, and encrypt settings that are still plain.

        Raises DataKeyError if a data key is missing.
        """
        encryption = self.encryption
        encryption.load([StoredTenantKey(*row) for row in await self._writer.read(_READ_KEYS)])
        if encryption.data_keys is None:
            return
        await self.rewrap(encryption.data_keys)
        await self.reserve([LOG_KEY], 0)
        rows = await self._writer.read(_READ_SETTINGS)
        plain = follow_settings(encryption, {row["tenant"]: row["settings"] for row in rows})
        if plain:
            async with self.lock:
                await self._reserve(plain, 1)
                sealed = [seal_settings(encryption, tenant, value) for tenant, value in plain.items()]
                await self._writer.write(_WRITE_SETTINGS, "NULL", list(plain), sealed)

    async def rewrap(self, data_keys: DataKeys) -> int:
        """Wrap all keys by the current one of these data keys. Returns the number of keys that were not."""
        return await self._writer.uninterrupted(self._rewrap(data_keys))

    async def _rewrap(self, data_keys: DataKeys) -> int:
        async with self.lock:
            rows = self.encryption.rewrap(data_keys)
            await self._write(rows)
            self.encryption.rewrapped(data_keys, rows)
        return len(rows)

    async def reserve(self, tenants: Collection[str], uses: int = 1) -> None:
        """Let each tenant's key encrypt so many values, before the caller waits for anything else.

        Writes only once in a million uses. There must be a data key.
        """
        while self.encryption.reserve(tenants, uses, self._now_ms()):
            async with self.lock:
                await self._reserve(tenants, uses)

    async def seal_registration(self, change: Registration) -> list[StoredTenant]:
        """Return the tenants to write, with encrypted settings if there is a data key.

        The caller holds the lock until they are committed. If a tenant is there twice, the last one counts.
        """
        tenants = {each.tenant: each for each in change.tenants}
        if self.encryption.data_keys is None:
            return list(tenants.values())
        await self._reserve(tenants, 1)
        return seal_tenants(self.encryption, tenants.values())

    def registered(self, change: Registration) -> None:
        """The change is committed: follow its settings."""
        for each in change.tenants:
            self.encryption.settings_changed(each.tenant, each.settings)

    async def seal_batch(self, batch: Batch) -> None:
        """Encrypt the content in a batch of the tenants that want it."""
        encryption = self.encryption
        if not encryption.encrypted_tenants:
            return
        dead: dict[int, str] = {}
        if batch.dead_lettered:
            delivery_ids = batch.dead_lettered[::DEAD_LETTER_COLUMNS]
            rows = await self._writer.read(_TENANTS_OF_DELIVERIES, delivery_ids)
            dead = {row["delivery_id"]: row["tenant"] for row in rows}
        uses = uses_of(batch)
        reserved: set[str] | None = None
        # Until they stay the same: settings may change while a reservation is committed.
        while (tenants := tenants_to_seal(encryption, batch, dead)) != reserved:
            await self.reserve(tenants, uses)
            reserved = tenants
        seal_content(encryption, batch, tenants, dead)

    async def _reserve(self, tenants: Collection[str], uses: int) -> None:
        rows = self.encryption.reserve(tenants, uses, self._now_ms())
        await self._write(rows)
        self.encryption.reserved(rows)

    async def _write(self, rows: Sequence[StoredTenantKey]) -> None:
        if rows:
            await self._writer.write(_WRITE_KEYS, "NULL", *map(list, zip(*rows, strict=True)))
