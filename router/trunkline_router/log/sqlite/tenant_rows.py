"""Reads and writes tenants, API keys and revocations: few rows, read as a whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from trunkline_router.core.values.stored_records import (
    Registered,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.log.encryption import Encryption, SealedTable
from trunkline_router.log.sqlite.audit_rows import expire_audit, write_audit

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


def read_registered(db: sqlite3.Connection, encryption: Encryption) -> Registered:
    """Read all of them, in the order of their names."""
    tenants, keys, revocations = (
        sorted(json.loads(db.execute(text).fetchone()[0])) for text in (_TENANTS, _API_KEYS, _REVOCATIONS)
    )
    return Registered(
        [
            StoredTenant(tenant, state, _unseal(encryption, tenant, settings), *at)
            for tenant, state, settings, *at in tenants
        ],
        [
            StoredApiKey(key_id, tenant, name, bytes.fromhex(digest), tuple(scopes), *at)
            for key_id, tenant, name, digest, scopes, *at in keys
        ],
        [StoredRevocation(tenant, RevocationKind(kind), *rest) for tenant, kind, *rest in revocations],
    )


def _unseal(encryption: Encryption, tenant: str, settings: str) -> bytes:
    return encryption.unseal(tenant, SealedTable.TENANTS, 0, 0, bytes.fromhex(settings))


def read_stored_settings(db: sqlite3.Connection) -> dict[str, bytes]:
    """Read the settings of all tenants as they are stored, encrypted or not."""
    rows = json.loads(db.execute(_TENANTS).fetchone()[0])
    return {tenant: bytes.fromhex(settings) for tenant, _, settings, *_ in rows}


def write_settings(db: sqlite3.Connection, settings: Mapping[str, bytes]) -> None:
    """Replace the settings of tenants."""
    rows = [(value, tenant) for tenant, value in settings.items()]
    db.executemany("UPDATE tenants SET settings = ? WHERE tenant = ?", rows)


def write_registration(db: sqlite3.Connection, change: Registration, tenants: Sequence[StoredTenant]) -> None:
    """Write a change, and its tenants as they are to be stored."""
    db.executemany("INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, ?, ?)", tenants)
    keys = [(*key[:4], json.dumps(key.scopes), *key[5:]) for key in change.api_keys]
    db.executemany("INSERT OR REPLACE INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?)", keys)
    db.executemany("INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?, ?)", change.revocations)
    db.executemany("DELETE FROM api_keys WHERE key_id = ?", [(key_id,) for key_id in change.keys_gone])
    used = [(used_ms, key_id) for key_id, used_ms in change.keys_used]
    db.executemany("UPDATE api_keys SET used_ms = ? WHERE key_id = ?", used)
    db.execute("DELETE FROM revocations WHERE revoked_ms < ?", (change.revoked_before_ms,))
    write_audit(db, change.audit)
    expire_audit(db, change.audited_before_ms)


def delete_tenant(db: sqlite3.Connection, tenant: str) -> None:
    """Delete a tenant with its API keys, revocations and the keys that encrypt."""
    for table in ("tenants", "api_keys", "revocations", "tenant_keys"):
        db.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))
