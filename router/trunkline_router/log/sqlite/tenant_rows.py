"""Reads and writes tenants, API keys and revocations: few rows, read as a whole."""

from __future__ import annotations

import json
import sqlite3

from trunkline_router.core.values.stored_records import (
    Registered,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)

# Each query returns all results in one row; see statements.
_TENANTS = (
    "SELECT json_group_array(json_array(tenant, state, hex(settings), created_ms, updated_ms)) FROM tenants"
)
_API_KEYS = (
    "SELECT json_group_array("
    "json_array(key_id, tenant, name, hex(digest), json(scopes), created_ms, used_ms)) FROM api_keys"
)
_REVOCATIONS = (
    "SELECT json_group_array(json_array(tenant, kind, name, issued_before_ms, revoked_ms)) FROM revocations"
)


def read_registered(db: sqlite3.Connection) -> Registered:
    """Read all of them, in the order of their names."""
    tenants, keys, revocations = (
        sorted(json.loads(db.execute(text).fetchone()[0])) for text in (_TENANTS, _API_KEYS, _REVOCATIONS)
    )
    return Registered(
        [
            StoredTenant(tenant, state, bytes.fromhex(settings), *at)
            for tenant, state, settings, *at in tenants
        ],
        [
            StoredApiKey(key_id, tenant, name, bytes.fromhex(digest), tuple(scopes), *at)
            for key_id, tenant, name, digest, scopes, *at in keys
        ],
        [StoredRevocation(tenant, RevocationKind(kind), *rest) for tenant, kind, *rest in revocations],
    )


def write_registration(db: sqlite3.Connection, change: Registration) -> None:
    """Write a change."""
    db.executemany("INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, ?, ?)", change.tenants)
    keys = [(*key[:4], json.dumps(key.scopes), *key[5:]) for key in change.api_keys]
    db.executemany("INSERT OR REPLACE INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?)", keys)
    db.executemany("INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?, ?)", change.revocations)
    db.executemany("DELETE FROM api_keys WHERE key_id = ?", [(key_id,) for key_id in change.keys_gone])
    used = [(used_ms, key_id) for key_id, used_ms in change.keys_used]
    db.executemany("UPDATE api_keys SET used_ms = ? WHERE key_id = ?", used)
    db.execute("DELETE FROM revocations WHERE revoked_ms < ?", (change.revoked_before_ms,))


def delete_tenant(db: sqlite3.Connection, tenant: str) -> None:
    """Delete a tenant with its API keys and revocations."""
    for table in ("tenants", "api_keys", "revocations"):
        db.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))
