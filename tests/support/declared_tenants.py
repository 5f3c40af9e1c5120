"""Tenants as the log has them, and as edges are told of them."""

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
    """A tenant that is open to this machine unless its settings say otherwise."""
    settings = settings or TenantSettings(open_to=OPENNESS_LOOPBACK)
    return StoredTenant(name, state, settings.SerializeToString(), 0, 0)


def registered(*names: str) -> Registered:
    """Tenants of these names, open to this machine."""
    return Registered(tenants=[stored_tenant(name) for name in names])


def policy(name: str, *, tokens: Iterable[str] = (), **settings: Any) -> TenantPolicy:
    """What an edge is told of a tenant: without tokens it is open to this machine."""
    settings.setdefault("open_to", OPENNESS_NOBODY if tokens else OPENNESS_LOOPBACK)
    auth = ClientAuth(token_digests=[sha256(token.encode()).hexdigest() for token in tokens])
    told = TenantSettings(client_auth=auth, **settings)
    told.limits.MergeFrom(default_limits())
    return TenantPolicy(tenant=name, state=TENANT_STATE_ACTIVE, settings=told)


def policy_entries(*policies: TenantPolicy) -> list[RouterEntry]:
    """What a router begins with on a link."""
    return [RouterEntry(policy=each) for each in policies] + [RouterEntry(policies_told=PoliciesTold())]
