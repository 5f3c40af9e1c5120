"""Writes and deletes tenants, API keys, revocations and audit records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trunkline_router.core.values.stored_records import AuditRecord, Registration, StoredTenant
from trunkline_router.log.postgres.batch_part import transposed
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.stored_text import to_column

#: Audit records that one registration deletes. It looks at the oldest ones only, so that it never scans the
#: table.
_EXPIRED_AUDIT = 5_000

_TENANTS = """
    registered AS (
        INSERT INTO tenants (tenant, state, settings, created_ms, updated_ms)
        SELECT u.* FROM fence, unnest($3::text[], $4::integer[], $5::bytea[], $6::bigint[], $7::bigint[]) AS u
        ON CONFLICT (tenant) DO UPDATE SET
            state = excluded.state, settings = excluded.settings,
            created_ms = excluded.created_ms, updated_ms = excluded.updated_ms
    )
"""
_API_KEYS = """
    keys AS (
        INSERT INTO api_keys (key_id, tenant, name, digest, scopes, created_ms, used_ms)
        SELECT u.key_id, u.tenant, u.name, u.digest, u.scopes::integer[], u.created_ms, u.used_ms
        FROM fence,
            unnest(
                $8::text[], $9::text[], $10::text[], $11::bytea[], $12::text[], $13::bigint[], $14::bigint[]
            ) AS u (key_id, tenant, name, digest, scopes, created_ms, used_ms)
        ON CONFLICT (key_id) DO UPDATE SET
            tenant = excluded.tenant, name = excluded.name, digest = excluded.digest,
            scopes = excluded.scopes, created_ms = excluded.created_ms, used_ms = excluded.used_ms
    ),
    keys_gone AS (DELETE FROM api_keys USING fence WHERE key_id = ANY ($15::text[])),
    keys_used AS (
        UPDATE api_keys AS k SET used_ms = u.used_ms
        FROM fence, unnest($16::text[], $17::bigint[]) AS u (key_id, used_ms) WHERE k.key_id = u.key_id
    )
"""
#: A statement must not meet a row twice: what is written is not deleted by its age.
_REVOCATIONS = """
    revoked AS (
        INSERT INTO revocations (tenant, kind, name, issued_before_ms, revoked_ms)
        SELECT u.* FROM fence,
            unnest($18::text[], $19::integer[], $20::text[], $21::bigint[], $22::bigint[]) AS u
        ON CONFLICT (tenant, kind, name) DO UPDATE SET
            issued_before_ms = excluded.issued_before_ms, revoked_ms = excluded.revoked_ms
    ),
    old_revocations AS (
        DELETE FROM revocations AS r USING fence WHERE $23::bigint > 0 AND r.revoked_ms < $23
        AND NOT EXISTS (
            SELECT FROM unnest($18::text[], $19::integer[], $20::text[]) AS u (tenant, kind, name)
            WHERE (u.tenant, u.kind, u.name) = (r.tenant, r.kind, r.name)
        )
    )
"""
_AUDIT = f"""
    audited AS (
        INSERT INTO audit (at_ms, tenant, actor, source, action, target, before, after)
        SELECT u.at_ms, u.tenant, u.actor, u.source, u.action, u.target, u.before, u.after
        FROM fence, unnest(
            $24::bigint[], $25::text[], $26::text[], $27::text[], $28::text[], $29::text[], $30::text[],
            $31::text[]
        ) WITH ORDINALITY AS u (at_ms, tenant, actor, source, action, target, before, after, number)
        ORDER BY u.number
    ),
    old_audit AS (
        DELETE FROM audit USING fence WHERE $32::bigint > 0 AND at_ms < $32
        AND id IN (SELECT id FROM audit ORDER BY id LIMIT {_EXPIRED_AUDIT})
    )
"""
_REGISTER = ",".join((_TENANTS, _API_KEYS, _REVOCATIONS, _AUDIT))


async def write_registration(
    writer: FencedWriter, change: Registration, tenants: Sequence[StoredTenant]
) -> None:
    """Commit a change; `tenants` are its tenants with settings as stored, each only once."""
    await writer.write(
        _REGISTER,
        "NULL",
        *transposed(tenants, 5),
        *_api_key_columns(change),
        *_revocation_columns(change),
        *_audit_columns(change.audit),
        change.audited_before_ms,
    )


def _api_key_columns(change: Registration) -> list[object]:
    """The keys to write, those to delete, and uses of others: each key is met only once."""
    gone = set(change.keys_gone)
    written = {key.key_id: key for key in change.api_keys if key.key_id not in gone}
    used = {key_id: used_ms for key_id, used_ms in change.keys_used if key_id not in gone}
    for key_id in used.keys() & written.keys():
        written[key_id] = written[key_id]._replace(used_ms=used.pop(key_id))
    rows = [
        (key_id, tenant, to_column(name), digest, f"{{{','.join(map(str, scopes))}}}", *times)
        for key_id, tenant, name, digest, scopes, *times in written.values()
    ]
    return [*transposed(rows, 7), list(map(to_column, gone)), list(map(to_column, used)), list(used.values())]


def _revocation_columns(change: Registration) -> list[object]:
    rows = {
        (tenant, int(kind), to_column(name)): (tenant, int(kind), to_column(name), *times)
        for tenant, kind, name, *times in change.revocations
    }
    return [*transposed(rows.values(), 5), change.revoked_before_ms]


def _audit_columns(records: Iterable[AuditRecord]) -> list[list[Any]]:
    return transposed([(at_ms, *map(to_column, texts)) for at_ms, *texts in records], 8)
