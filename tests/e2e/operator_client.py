"""Operator on generated gRPC stubs, who manages tenants while the fleet runs."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import httpx
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.tenant_pb2 import ClientAuth, Retention, Tenant, TenantLimits, TenantSettings
from trunkline.v1.tenant_service_pb2 import (
    CreateApiKeyRequest,
    CreateApiKeyResponse,
    CreateTenantRequest,
    DeleteTenantRequest,
    EraseUserRequest,
    EraseUserResponse,
    ResumeTenantRequest,
    RevokeTokensRequest,
    SuspendTenantRequest,
    UpdateTenantRequest,
)
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub

from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.processes import Process
    from tests.support.signing import Signer

EVERYTHING = ("BROADCAST", "HISTORY", "PRESENCE", "ATTACH", "ADMIN")


def client_auth(signers: Iterable[Signer] = (), secrets: Iterable[str] = (), **more: Any) -> ClientAuth:
    """Return the settings of a tenant that accepts tokens of these signers, and these secrets."""
    digests = [sha256(secret.encode()).hexdigest() for secret in secrets]
    return ClientAuth(keys=[signer.declared() for signer in signers], token_digests=digests, **more)


class OperatorClient(GrpcBackend):
    """Backend with the operator's key, which also manages tenants."""

    def __init__(self, router: str, key: str, edges: Iterable[Process] = ()) -> None:
        """`edges` are those that must know a tenant before its clients come."""
        super().__init__(router, key=key)
        self.address = router
        self.tenants = TenantServiceStub(self.channel)
        self._edges = list(edges)

    def create(self, tenant: str, **settings: Any) -> Tenant:
        """Create a tenant; `limits` and `retention` may be dicts of their fields."""
        request = CreateTenantRequest(tenant=tenant, settings=_settings(settings))
        created = self.tenants.CreateTenant(request, timeout=TIMEOUT_S, wait_for_ready=True).tenant
        for edge in self._edges:
            _wait_until_known(edge.address, tenant)
        return created  # type: ignore[no-any-return]

    def update(self, tenant: str, **settings: Any) -> Tenant:
        """Change settings of a tenant."""
        request = UpdateTenantRequest(tenant=tenant, settings=_settings(settings))
        request.update_mask.paths.extend(settings)
        return self.tenants.UpdateTenant(request, timeout=TIMEOUT_S, wait_for_ready=True).tenant  # type: ignore[no-any-return]

    def suspend(self, tenant: str) -> None:
        """Suspend a tenant."""
        self.tenants.SuspendTenant(SuspendTenantRequest(tenant=tenant), timeout=TIMEOUT_S)

    def resume(self, tenant: str) -> None:
        """Resume a suspended tenant."""
        self.tenants.ResumeTenant(ResumeTenantRequest(tenant=tenant), timeout=TIMEOUT_S)

    def delete(self, tenant: str) -> int:
        """Delete a tenant; return its number of messages."""
        return int(self.tenants.DeleteTenant(DeleteTenantRequest(tenant=tenant), timeout=TIMEOUT_S).messages)

    def api_key(self, tenant: str, *scopes: str) -> CreateApiKeyResponse:
        """Create an API key, with all scopes unless some are named."""
        wanted = [Scope.Value(f"SCOPE_{scope}") for scope in scopes or EVERYTHING]
        request = CreateApiKeyRequest(tenant=tenant, name="tests", scopes=wanted)
        return self.tenants.CreateApiKey(request, timeout=TIMEOUT_S, wait_for_ready=True)  # type: ignore[no-any-return]

    def revoke(self, tenant: str, **which: Any) -> int:
        """Revoke tokens; return the number of closed connections."""
        request = RevokeTokensRequest(tenant=tenant, **which)
        return int(self.tenants.RevokeTokens(request, timeout=TIMEOUT_S, wait_for_ready=True).connections)

    def erase_user(self, tenant: str, user: str) -> EraseUserResponse:
        """Erase a user's data."""
        request = EraseUserRequest(tenant=tenant, user=user)
        return self.tenants.EraseUser(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]


def wait_until_known(tenant: str, *edges: Process) -> None:
    """Wait until edges know a new tenant, normally within a second."""
    deadline = time.monotonic() + TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=TIMEOUT_S) as http:
        for edge in edges:
            # Without a key, the edge itself rejects calls for unknown tenants.
            while "UNKNOWN_TENANT" in http.get(f"http://{edge.address}/v1/tenants/{tenant}/stats").text:
                assert time.monotonic() < deadline


def _settings(given: dict[str, Any]) -> TenantSettings:
    kinds = {"limits": TenantLimits, "retention": Retention}
    made = {
        name: kinds[name](**value) if name in kinds and isinstance(value, dict) else value
        for name, value in given.items()
    }
    return TenantSettings(**made)


def _wait_until_known(edge: str, tenant: str) -> None:
    """Wait until an edge knows a tenant, however busy the machine is."""
    deadline = time.monotonic() + patient(20)
    while httpx.get(f"http://{edge}/v1/tenants/{tenant}/stats", timeout=patient(5)).status_code == 404:
        assert time.monotonic() < deadline, f"the edge does not know {tenant}"
