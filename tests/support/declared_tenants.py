"""Tenants as stored in the log, and their policies as sent to edges."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from trunkline.v1.edge_service_pb2 import PoliciesTold, RouterEntry, TenantPolicy
from trunkline.v1.tenant_limits import default_limits
from trunkline.v1.tenant_pb2 import (
    OPENNESS_LOOPBACK,
    OPENNESS_NOBODY,
    TENANT_STATE_ACTIVE,
    ClientAuth,
    TenantSettings,
    TenantState,
)
from trunkline_router.core.values.stored_records import Registered, StoredTenant


def stored_tenant(
    name: str,
    settings: TenantSettings | None = None,
    state: TenantState.ValueType = TENANT_STATE_ACTIVE,
) -> StoredTenant:
    """Return a stored tenant, by default open to this machine."""
    settings = settings or TenantSettings(open_to=OPENNESS_LOOPBACK)
    return StoredTenant(name, state, settings.SerializeToString(), 0, 0)


def registered(*names: str) -> Registered:
    """Return stored tenants with these names, open to this machine."""
    return Registered(tenants=[stored_tenant(name) for name in names])


def policy(name: str, *, tokens: Iterable[str] = (), **settings: Any) -> TenantPolicy:
    """Return a tenant policy; without tokens the tenant is open to this machine."""
    settings.setdefault("open_to", OPENNESS_NOBODY if tokens else OPENNESS_LOOPBACK)
    auth = ClientAuth(token_digests=[sha256(token.encode()).hexdigest() for token in tokens])
    complete = TenantSettings(client_auth=auth, **settings)
    complete.limits.MergeFrom(default_limits())
    return TenantPolicy(tenant=name, state=TENANT_STATE_ACTIVE, settings=complete)


def policy_entries(*policies: TenantPolicy) -> list[RouterEntry]:
    """Return the policies that a router sends first on a link."""
    return [RouterEntry(policy=each) for each in policies] + [RouterEntry(policies_told=PoliciesTold())]
