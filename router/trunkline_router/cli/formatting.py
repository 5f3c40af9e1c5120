"""Formats tenants, keys, revocations and audit entries as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import TYPE_CHECKING

from rich.table import Table
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.audit_service_pb2 import AuditEntry
from trunkline.v1.tenant_limits import TENANT_LIMITS
from trunkline.v1.tenant_pb2 import ApiKey, Openness, Revocation, Tenant, TenantSettings, TenantState
from trunkline_runtime.reserved_names import RESERVED_FIELDS

from trunkline_router.cli.agent_options import agent_settings
from trunkline_router.cli.operator_client import printable
from trunkline_router.cli.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from trunkline_router.log.migration.copier import CopiedRows


def tenants_table(tenants: Iterable[Tenant]) -> Table:
    """Tenants, one per row."""
    table = _table("tenant", "state", "open to", "signing keys", "agent", "created")
    for tenant in tenants:
        auth = tenant.settings.client_auth
        keys = [key.kid for key in auth.keys] + [auth.jwks_url] * bool(auth.jwks_url)
        _add_row(
            table,
            tenant.tenant,
            _enum_word(TenantState.Name(tenant.state)),
            _enum_word(Openness.Name(tenant.settings.open_to)),
            ", ".join(keys),
            tenant.settings.default_agent,
            _time(tenant.created_at),
        )
    return table


def tenant_table(tenant: Tenant) -> Table:
    """All settings of one tenant, one per row."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _properties(tenant):
        if value:
            _add_row(table, name, value)
    return table


def _properties(tenant: Tenant) -> Iterator[tuple[str, str]]:
    settings = tenant.settings
    auth = settings.client_auth
    yield "tenant", tenant.tenant
    yield "state", _enum_word(TenantState.Name(tenant.state))
    yield "created", _time(tenant.created_at)
    yield "updated", _time(tenant.updated_at)
    yield "open to", _enum_word(Openness.Name(settings.open_to))
    yield "agent", settings.default_agent
    for field in RESERVED_FIELDS.values():
        yield field.replace("_", " "), ", ".join(getattr(settings, field))
    yield "origins", ", ".join(settings.origins) or "any"
    yield "credentials", "allowed" if settings.allow_credentials else ""
    yield "signing keys", ", ".join(f"{key.kid} ({key.algorithm})" for key in auth.keys)
    yield "JWK Set", auth.jwks_url
    yield "audiences", ", ".join(auth.audiences)
    yield "issuer", auth.issuer
    yield "shared secrets", str(len(auth.token_digests) or "")
    yield "agent settings", ", ".join(agent_settings(settings))
    yield "background tasks", "excluded" if settings.exclude_background_tasks else ""
    yield "limits", ", ".join(_limits(settings)) or "defaults"
    yield "history", ", ".join(_retention(settings)) or "kept forever"
    yield "encryption", "new messages, where they are stored" if settings.encrypt_messages else ""


def _limits(settings: TenantSettings) -> Iterator[str]:
    for field, value in settings.limits.ListFields():
        yield f"{field.name} {format_bytes(value) if TENANT_LIMITS[field.name].is_size else value}"


def _retention(settings: TenantSettings) -> Iterator[str]:
    retention = settings.retention
    if retention.max_age_s:
        yield f"at most {format_seconds(retention.max_age_s)}"
    if retention.max_messages:
        yield f"at most {retention.max_messages} entries per topic"
    if retention.max_bytes:
        yield f"at most {format_bytes(retention.max_bytes)} per topic"


def keys_table(keys: Iterable[ApiKey]) -> Table:
    """API keys, one per row."""
    table = _table("key", "name", "scopes", "created", "last used")
    for key in keys:
        used = _time(key.last_used_at) if key.HasField("last_used_at") else "never"
        _add_row(table, key.key_id, key.name, scopes_of(key), _time(key.created_at), used)
    return table


def scopes_of(key: ApiKey) -> str:
    """The scopes of a key, comma-separated."""
    return ", ".join(Scope.Name(scope).removeprefix("SCOPE_").lower() for scope in key.scopes)


def revocations_table(revocations: Iterable[Revocation]) -> Table:
    """Revocations, one per row."""
    table = _table("tokens of", "name", "issued before", "revoked")
    for revocation in revocations:
        kind = revocation.WhichOneof("revoked") or ""
        name = "" if kind == "all" else getattr(revocation, kind)
        before = "" if kind == "token_id" else _time(revocation.issued_before)
        _add_row(table, {"token_id": "token"}.get(kind, kind), name, before, _time(revocation.revoked_at))
    return table


def audit_table(entries: Iterable[AuditEntry]) -> Table:
    """Audit entries, one per row."""
    table = _table("time", "tenant", "actor", "from", "action", "target", "before", "after")
    for entry in entries:
        action = f"{entry.action} ({entry.error})" if entry.error else entry.action
        _add_row(
            table,
            _time(entry.at),
            entry.tenant,
            entry.actor,
            entry.source,
            action,
            entry.target,
            entry.before,
            "" if entry.error else entry.after,
        )
    return table


def copied_table(tables: Iterable[CopiedRows]) -> Table:
    """Copied tables, one per row."""
    table = _table("table", "rows", "digest")
    table.columns[1].justify = "right"
    for each in tables:
        _add_row(table, each.table, f"{each.rows:,}", each.digest[:16])
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(printable, cells))


def _enum_word(name: str) -> str:
    """`TENANT_STATE_ACTIVE` as `active`."""
    return name.removeprefix("TENANT_STATE_").removeprefix("OPENNESS_").lower()


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
