"""Reads and writes the keys of tenants."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from trunkline_router.log.encryption import StoredTenantKey

# Each query returns all results in one row; see statements.
_KEYS = (
    "SELECT json_group_array(json_array(tenant, generation, data_key, hex(wrapped), reserved, created_ms))"
    " FROM tenant_keys"
)
_TENANTS_OF_DELIVERIES = (
    "SELECT json_group_object(delivery_id, tenant) FROM deliveries"
    " WHERE delivery_id IN (SELECT value FROM json_each(?))"
)


def read_tenant_keys(db: sqlite3.Connection) -> list[StoredTenantKey]:
    """Read all keys."""
    return [
        StoredTenantKey(tenant, generation, data_key, bytes.fromhex(wrapped), reserved, created_ms)
        for tenant, generation, data_key, wrapped, reserved, created_ms in json.loads(
            db.execute(_KEYS).fetchone()[0]
        )
    ]


def write_tenant_keys(db: sqlite3.Connection, rows: Iterable[StoredTenantKey]) -> None:
    """Write keys; each replaces the one of its tenant and generation."""
    db.executemany("INSERT OR REPLACE INTO tenant_keys VALUES (?, ?, ?, ?, ?, ?)", rows)


def tenants_of_deliveries(db: sqlite3.Connection, delivery_ids: Sequence[int]) -> dict[int, str]:
    """Return the tenants of those of these deliveries that exist."""
    found = json.loads(db.execute(_TENANTS_OF_DELIVERIES, (json.dumps(delivery_ids),)).fetchone()[0])
    return {int(delivery_id): tenant for delivery_id, tenant in found.items()}
