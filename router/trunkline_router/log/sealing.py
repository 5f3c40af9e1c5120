"""Seals tenants' settings and batches, for every engine. Uses of keys are reserved first; see Encryption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trunkline_router.core.values.stored_records import StoredTenant
from trunkline_router.log.batch import DEAD_LETTER_COLUMNS, Batch
from trunkline_router.log.encryption import Encryption, SealedTable, is_sealed

_REASON = 2


def follow_settings(encryption: Encryption, stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """Follow the settings of all tenants, as they are stored. Returns those that are plain, by tenant."""
    for tenant, value in stored.items():
        plain = encryption.unseal(tenant, SealedTable.TENANTS, 0, 0, value)
        encryption.settings_changed(tenant, plain)
    return {tenant: value for tenant, value in stored.items() if not is_sealed(value)}


def seal_settings(encryption: Encryption, tenant: str, settings: bytes) -> bytes:
    """Encrypt a tenant's settings: one use."""
    return encryption.seal(tenant, SealedTable.TENANTS, 0, 0, settings)


def seal_tenants(encryption: Encryption, tenants: Iterable[StoredTenant]) -> list[StoredTenant]:
    """Return tenants with encrypted settings: one use each."""
    return [each._replace(settings=seal_settings(encryption, each.tenant, each.settings)) for each in tenants]


def tenants_to_seal(encryption: Encryption, batch: Batch, dead: Mapping[int, str]) -> set[str]:
    """Return the tenants of a batch that want their content encrypted.

    `dead` has the tenants of the deliveries that become dead letters.
    """
    encrypted = encryption.encrypted_tenants
    return encrypted.intersection(batch.tenants.values()) | encrypted.intersection(dead.values())


def uses_of(batch: Batch) -> int:
    """Return how often each key is used at most to seal a batch."""
    return 2 * len(batch.bodies) + len(batch.deltas) + len(batch.dead_lettered)


def seal_content(
    encryption: Encryption, batch: Batch, tenants: Iterable[str], dead: Mapping[int, str]
) -> None:
    """Encrypt the content in a batch of these tenants; see tenants_to_seal."""
    encryption.seal_batch(batch)
    rows = batch.dead_lettered
    for start in range(0, len(rows), DEAD_LETTER_COLUMNS):
        tenant = dead.get(rows[start], "")
        if tenant in tenants:
            reason = rows[start + _REASON].encode()
            rows[start + _REASON] = encryption.seal(tenant, SealedTable.DEAD_LETTERS, rows[start], 0, reason)
