"""What people are shown of tenants, keys and revocations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import TYPE_CHECKING

from rich.table import Table
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.tenant_pb2 import ApiKey, Openness, Revocation, Tenant, TenantSettings, TenantState
from trunkline_runtime.reserved_names import RESERVED_FIELDS

from trunkline_router.cli.operator import printable
from trunkline_router.cli.units import shown_bytes, shown_seconds

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


def tenants_table(tenants: Iterable[Tenant]) -> Table:
    """One line a tenant."""
    table = _table("tenant", "state", "open to", "signing keys", "agent", "declared")
    for tenant in tenants:
        auth = tenant.settings.client_auth
        keys = [key.kid for key in auth.keys] + [auth.jwks_url] * bool(auth.jwks_url)
        _add(
            table,
            tenant.tenant,
            _word(TenantState.Name(tenant.state)),
            _word(Openness.Name(tenant.settings.open_to)),
            ", ".join(keys),
            tenant.settings.default_agent,
            _time(tenant.created_at),
        )
    return table


def tenant_table(tenant: Tenant) -> Table:
    """All of one tenant."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(tenant):
        if value:
            _add(table, name, value)
    return table


def _facts(tenant: Tenant) -> Iterator[tuple[str, str]]:
    settings = tenant.settings
    auth = settings.client_auth
    yield "tenant", tenant.tenant
    yield "state", _word(TenantState.Name(tenant.state))
    yield "declared", _time(tenant.created_at)
    yield "changed", _time(tenant.updated_at)
    yield "open to", _word(Openness.Name(settings.open_to))
    yield "agent", settings.default_agent
    for field in RESERVED_FIELDS.values():
        yield field, ", ".join(getattr(settings, field))
    yield "origins", ", ".join(settings.origins) or "any"
    yield "signing keys", ", ".join(f"{key.kid} ({key.algorithm})" for key in auth.keys)
    yield "JWK Set", auth.jwks_url
    yield "audiences", ", ".join(auth.audiences)
    yield "issuer", auth.issuer
    yield "shared secrets", str(len(auth.token_digests) or "")
    yield "limits", ", ".join(_limits(settings)) or "the defaults"
    yield "history", ", ".join(_kept(settings)) or "kept for ever"


def _limits(settings: TenantSettings) -> Iterator[str]:
    for field, value in settings.limits.ListFields():
        yield f"{field.name} {shown_bytes(value) if 'bytes' in field.name else value}"


def _kept(settings: TenantSettings) -> Iterator[str]:
    kept = settings.retention
    if kept.max_age_s:
        yield f"at most {shown_seconds(kept.max_age_s)}"
    if kept.max_messages:
        yield f"at most {kept.max_messages} entries of a topic"
    if kept.max_bytes:
        yield f"at most {shown_bytes(kept.max_bytes)} of a topic"


def keys_table(keys: Iterable[ApiKey]) -> Table:
    """One line an API key."""
    table = _table("key", "name", "scopes", "made", "last used")
    for key in keys:
        used = _time(key.last_used_at) if key.HasField("last_used_at") else "never"
        _add(table, key.key_id, key.name, scopes_of(key), _time(key.created_at), used)
    return table


def scopes_of(key: ApiKey) -> str:
    """What it may do."""
    return ", ".join(Scope.Name(scope).removeprefix("SCOPE_").lower() for scope in key.scopes)


def revocations_table(revocations: Iterable[Revocation]) -> Table:
    """One line a revocation."""
    table = _table("of", "name", "issued before", "revoked")
    for each in revocations:
        kind = each.WhichOneof("revoked") or ""
        name = "" if kind == "all" else getattr(each, kind)
        before = "" if kind == "token_id" else _time(each.issued_before)
        _add(table, {"token_id": "token"}.get(kind, kind), name, before, _time(each.revoked_at))
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(printable, cells))


def _word(name: str) -> str:
    """`TENANT_STATE_ACTIVE` as people say it."""
    return name.removeprefix("TENANT_STATE_").removeprefix("OPENNESS_").lower()


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
