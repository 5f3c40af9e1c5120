"""Admission of clients: token, revocations and connection limits."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_runtime.loopback import is_local_caller
from trunkline_runtime.tenant_policy import unauthenticated

from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.permissions import Permissions


def admit(directory: Directory, entry: ConnectionOpened, permissions: Permissions | None) -> Tenant:
    """Return the tenant of a client that connects, or that was admitted before its link broke.

    `permissions` are the permissions of its token, which the edge has verified; None without a token.
    Raises Refused.
    """
    tenant = directory.active_tenant(entry.address.tenant)
    if permissions is None:
        is_local = is_local_caller(entry.remote_ip, is_forwarded=entry.forwarded)
        if not tenant.is_open_to(is_local):
            raise unauthenticated(tenant.name, tenant.settings.open_to)
    elif tenant.revocations.revokes(entry.user, permissions):
        raise catalogue.TOKEN_REVOKED.refused()
    if not entry.restored:
        _check_limits(tenant, entry.user)
    return tenant


def _check_limits(tenant: Tenant, user: str) -> None:
    limits = tenant.limits
    if tenant.connection_count >= limits.connections:
        whose = f"tenant {tenant.name}"
        raise catalogue.TOO_MANY_CONNECTIONS.refused(whose=whose, limit=limits.connections)
    if user and tenant.connections_by_user[user] >= limits.connections_per_user:
        raise catalogue.TOO_MANY_CONNECTIONS.refused(whose="this user", limit=limits.connections_per_user)
