"""An operator on the bare contract, who declares tenants while all runs; and how clients are refused."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

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
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.fleet import metric
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.processes import Process
    from tests.support.signing import Signer

EVERYTHING = ("BROADCAST", "HISTORY", "PRESENCE", "ATTACH", "ADMIN")


def client_auth(signers: Iterable[Signer] = (), secrets: Iterable[str] = (), **more: Any) -> ClientAuth:
    """What a tenant declares that takes tokens of these signers, and these secrets."""
    digests = [sha256(secret.encode()).hexdigest() for secret in secrets]
    return ClientAuth(keys=[signer.declared() for signer in signers], token_digests=digests, **more)


class OperatorClient(GrpcBackend):
    """Calls a router with the operator's key; what it may not be told otherwise it asks itself."""

    def __init__(self, router: str, key: str) -> None:
        super().__init__(router, key=key)
        self.address = router
        self.tenants = TenantServiceStub(self.channel)

    def create(self, tenant: str, **settings: Any) -> Tenant:
        """Declare a tenant; `limits` and `retention` may be given as what they are made of."""
        request = CreateTenantRequest(tenant=tenant, settings=_settings(settings))
        return self.tenants.CreateTenant(request, timeout=TIMEOUT_S, wait_for_ready=True).tenant  # type: ignore[no-any-return]

    def update(self, tenant: str, **settings: Any) -> Tenant:
        """Change these of a tenant's settings."""
        request = UpdateTenantRequest(tenant=tenant, settings=_settings(settings))
        request.update_mask.paths.extend(settings)
        return self.tenants.UpdateTenant(request, timeout=TIMEOUT_S, wait_for_ready=True).tenant  # type: ignore[no-any-return]

    def suspend(self, tenant: str) -> None:
        """Suspend a tenant."""
        self.tenants.SuspendTenant(SuspendTenantRequest(tenant=tenant), timeout=TIMEOUT_S)

    def resume(self, tenant: str) -> None:
        """End the suspension of a tenant."""
        self.tenants.ResumeTenant(ResumeTenantRequest(tenant=tenant), timeout=TIMEOUT_S)

    def delete(self, tenant: str) -> int:
        """Delete a tenant; returns how many messages it had."""
        return int(self.tenants.DeleteTenant(DeleteTenantRequest(tenant=tenant), timeout=TIMEOUT_S).messages)

    def api_key(self, tenant: str, *scopes: str) -> CreateApiKeyResponse:
        """A new key of a tenant, which may do everything unless scopes are named."""
        wanted = [Scope.Value(f"SCOPE_{scope}") for scope in scopes or EVERYTHING]
        request = CreateApiKeyRequest(tenant=tenant, name="tests", scopes=wanted)
        return self.tenants.CreateApiKey(request, timeout=TIMEOUT_S, wait_for_ready=True)  # type: ignore[no-any-return]

    def revoke(self, tenant: str, **which: Any) -> int:
        """Take tokens back; returns how many connections that ends."""
        request = RevokeTokensRequest(tenant=tenant, **which)
        return int(self.tenants.RevokeTokens(request, timeout=TIMEOUT_S, wait_for_ready=True).connections)

    def erase_user(self, tenant: str, user: str) -> EraseUserResponse:
        """Erase a user."""
        request = EraseUserRequest(tenant=tenant, user=user)
        return self.tenants.EraseUser(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]


def wait_until_known(tenant: str, *edges: Process) -> None:
    """Wait until edges know of a new tenant, which they do within a second."""
    deadline = time.monotonic() + TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=TIMEOUT_S) as http:
        for edge in edges:
            # To those without a key an edge says by itself that there is no such tenant.
            while "UNKNOWN_TENANT" in http.get(f"http://{edge.address}/v1/tenants/{tenant}/stats").text:
                assert time.monotonic() < deadline


def _settings(given: dict[str, Any]) -> TenantSettings:
    kinds = {"limits": TenantLimits, "retention": Retention}
    made = {name: kinds[name](**value) if isinstance(value, dict) else value for name, value in given.items()}
    return TenantSettings(**made)


class Refusal(NamedTuple):
    """How a request was refused, as google.rpc.Status in JSON says it."""

    status: int
    code: str
    #: 0 where it is not to be tried again.
    retry_after_s: float
    text: str
    headers: Any


def refusal_in(status: int, headers: Any, body: dict[str, Any]) -> Refusal:
    """The refusal that a response is."""
    assert headers["content-type"] == "application/json"
    [code] = [detail["reason"] for detail in body["details"] if detail["@type"].endswith("ErrorInfo")]
    delays = [detail["retryDelay"] for detail in body["details"] if detail["@type"].endswith("RetryInfo")]
    return Refusal(status, code, float(delays[0].rstrip("s")) if delays else 0, body["message"], headers)


async def refused(edge: Process, path: str, **options: Any) -> Refusal:
    """How a client is refused before the upgrade."""
    try:
        async with connect(f"ws://{edge.address}{path}", compression=None, **options):
            raise AssertionError(f"{path} was let in")
    except InvalidStatus as error:
        response = error.response
        return refusal_in(response.status_code, response.headers, json.loads(response.body or b""))


async def refused_stream(edge: Process, path: str, **headers: str) -> Refusal:
    """How a request for an event stream is refused."""
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
        response = await http.get(f"http://{edge.address}{path}", headers=headers)
    return refusal_in(response.status_code, response.headers, response.json())


def refused_by(edge: Process, code: str) -> int:
    """How often an edge has refused something for this code."""
    return int(metric(edge, f'trunkline_edge_refused_total{{code="{code}"}}', absent=0))


def metrics_of(edge: Process) -> str:
    """All metrics of an edge."""
    with urlopen(f"http://{edge.address}/metrics", timeout=patient(10)) as response:
        text: str = response.read().decode()
    return text
