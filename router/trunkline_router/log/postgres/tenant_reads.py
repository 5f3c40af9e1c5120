"""Reads tenants, API keys, revocations and audit records."""

from __future__ import annotations

from trunkline_router.core.values.stored_records import (
    REFUSED,
    AuditQuery,
    AuditRecord,
    Registered,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.log.encryption import Encryption, SealedTable
from trunkline_router.log.postgres.read_pool import Connections
from trunkline_router.log.postgres.stored_text import from_column, to_column
from trunkline_router.log.postgres.texts import HIGHEST_ID, is_storable

#: The rows of three tables in one result, so that they are of one snapshot.
_REGISTERED = """
    SELECT tenant, NULL AS key_id, state AS number, NULL AS name, settings AS value,
        NULL::integer[] AS scopes, created_ms, updated_ms
    FROM tenants
    UNION ALL
    SELECT tenant, key_id, NULL, name, digest, scopes, created_ms, used_ms FROM api_keys
    UNION ALL
    SELECT tenant, NULL, kind, name, NULL, NULL, issued_before_ms, revoked_ms FROM revocations
"""
_COLUMNS = "at_ms, tenant, actor, source, action, target, before, after"
_AUDIT = f"""
    SELECT id, {_COLUMNS}
    FROM (
        SELECT *, sum(size) OVER (ORDER BY id DESC ROWS UNBOUNDED PRECEDING) - size AS newer
        FROM (
            SELECT *, length(before) + length(after) AS size FROM audit
            WHERE at_ms >= $1 AND {{}} AND ($3 = '' OR action IN ($3, $4))
            ORDER BY {{}} LIMIT $5
        ) AS newest
    ) AS summed
    WHERE newer < $6
    ORDER BY id DESC
"""
_OF_ALL = _AUDIT.format("id < $2", "id DESC")
#: Those of one tenant. Only its index has this order, so that no plan scans the records of all tenants.
_OF_TENANT = _AUDIT.format("(tenant, id) < ($7, $2) AND tenant >= $7", "tenant DESC, id DESC")


async def read_registered(connections: Connections, encryption: Encryption) -> Registered:
    """Read all of them, in the order of their names."""
    registered = Registered()
    for tenant, key_id, number, name, value, scopes, *times in await connections.fetch(_REGISTERED):
        if key_id is not None:
            key = StoredApiKey(key_id, tenant, from_column(name), value, tuple(scopes), *times)
            registered.api_keys.append(key)
        elif name is not None:
            revocation = StoredRevocation(tenant, RevocationKind(number), from_column(name), *times)
            registered.revocations.append(revocation)
        else:
            settings = encryption.unseal(tenant, SealedTable.TENANTS, 0, 0, value)
            registered.tenants.append(StoredTenant(tenant, number, settings, *times))
    for rows in (registered.tenants, registered.api_keys, registered.revocations):
        rows.sort()
    return registered


async def read_audit(connections: Connections, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
    """Read records with their ids, newest first."""
    tenant, action = to_column(query.tenant), to_column(query.action)
    if not is_storable(tenant, action):
        return []
    before_id = min(query.before_id, HIGHEST_ID) or HIGHEST_ID
    parameters = [query.since_ms, before_id, action, action + REFUSED, query.limit, query.max_chars]
    if tenant:
        rows = await connections.fetch(_OF_TENANT, *parameters, tenant)
    else:
        rows = await connections.fetch(_OF_ALL, *parameters)
    return [(number, AuditRecord(at_ms, *map(from_column, texts))) for number, at_ms, *texts in rows]
