"""HTTP calls: the edge forwards credentials, and the router decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from trunkline.v1.access_pb2 import SCOPE_BROADCAST, SCOPE_PRESENCE
from trunkline.v1.tenant_pb2 import OPENNESS_ANYBODY, OPENNESS_LOOPBACK, OPENNESS_NOBODY
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.fair_worker import FairWorker
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.transcoding import routes
from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_runtime.router_addresses import RouterAddresses

from tests.edge.http.token_admission import token_callers
from tests.router.rpc.in_process_router import OPERATOR, InProcessRouter, in_process_router
from tests.support.declared_tenants import policy

TENANTS = TenantPolicies(
    [
        policy("open", open_to=OPENNESS_LOOPBACK),
        policy("all", open_to=OPENNESS_ANYBODY),
        policy("closed", open_to=OPENNESS_NOBODY, tokens=["shared by clients"]),
    ]
)
HERE, FAR = "127.0.0.1", "192.0.2.1"


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[InProcessRouter]:
    async with in_process_router(tmp_path, LinkVerifier()) as router:
        yield router


@pytest.fixture
async def edge(router: InProcessRouter) -> AsyncIterator[Starlette]:
    calls, access = RouterClient(RouterAddresses(router.address)), CallerMetadata(TENANTS)
    yield Starlette(routes=routes(calls, access, token_callers(TENANTS), BodyReader(), FairWorker()))
    await calls.close()


async def ask(
    edge: Starlette, method: str, path: str, host: str = HERE, json: object = None, **headers: str
) -> tuple[int, str]:
    """Make a request. Returns its HTTP status, and the code of a refusal."""
    transport = httpx.ASGITransport(edge, client=(host, 1))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1/tenants") as client:
        answer = await client.request(method, f"http://localhost/v1/tenants{path}", json=json, headers=named)
    return answer.status_code, answer.json()["details"][0]["reason"] if answer.is_error else ""


OK, UNAUTHORIZED, FORBIDDEN = (200, ""), (401, "UNAUTHORIZED"), (403, "FORBIDDEN")
MESSAGE = {"parts": [{"text": {"text": "hi"}}]}


async def test_credentials_decide_over_http(edge: Starlette, router: InProcessRouter) -> None:
    _, key = await router.key("closed", SCOPE_BROADCAST, SCOPE_PRESENCE)
    for host in (HERE, FAR):
        for credentials in ({"authorization": f"Bearer {key}"}, {"x_api_key": key}):
            assert await ask(edge, "GET", "/closed/stats", host, **credentials) == OK
            assert await ask(edge, "POST", "/closed/messages", host, json=MESSAGE, **credentials) == OK
            assert await ask(edge, "GET", "/closed/apiKeys", host, **credentials) == FORBIDDEN
            assert await ask(edge, "GET", "/all/stats", host, **credentials) == FORBIDDEN
            assert await ask(edge, "GET", "/nobody/stats", host, **credentials) == FORBIDDEN
            assert await ask(edge, "GET", "/nobody/connections:watch", host, **credentials) == FORBIDDEN
            assert await ask(edge, "GET", "", host, **credentials) == FORBIDDEN
        for wrong in (
            {"authorization": "Bearer wrong"},
            {"x_api_key": "wrong"},
            {"authorization": "Bearer "},
        ):
            for tenant in ("all", "closed", "nobody"):
                assert await ask(edge, "GET", f"/{tenant}/stats", host, **wrong) == UNAUTHORIZED
                assert (
                    await ask(edge, "POST", f"/{tenant}/messages", host, json=MESSAGE, **wrong)
                    == UNAUTHORIZED
                )
        assert await ask(edge, "GET", "/closed/stats", host) == UNAUTHORIZED
        assert await ask(edge, "GET", "/closed/connections:watch", host) == UNAUTHORIZED
        assert await ask(edge, "GET", "/all/stats", host) == OK
        assert await ask(edge, "GET", "/nobody/stats", host) == (404, "UNKNOWN_TENANT")
        assert await ask(edge, "GET", "", host) == UNAUTHORIZED


async def test_a_tenant_open_to_loopback_is_open_over_http(edge: Starlette) -> None:
    assert await ask(edge, "GET", "/open/stats") == OK
    assert await ask(edge, "POST", "/open/messages", json=MESSAGE) == OK
    assert await ask(edge, "GET", "/open/stats", FAR) == UNAUTHORIZED
    for header in ("x_forwarded_for", "x_real_ip", "forwarded"):
        assert await ask(edge, "GET", "/open/stats", **{header: HERE}) == UNAUTHORIZED
        assert await ask(edge, "POST", "/open/messages", json=MESSAGE, **{header: HERE}) == UNAUTHORIZED
    # Callers cannot set the metadata that edges set.
    forged = {"trunkline_remote_ip": HERE, "trunkline_acting_for": "closed"}
    assert await ask(edge, "GET", "/open/stats", FAR, **forged) == UNAUTHORIZED
    assert await ask(edge, "GET", "/closed/stats", FAR, **forged) == UNAUTHORIZED


async def test_a_shared_secret_grants_what_clients_may_do(edge: Starlette) -> None:
    credentials = {"x_api_key": "shared by clients"}
    assert await ask(edge, "GET", "/closed/stats", FAR, **credentials) == OK
    assert await ask(edge, "POST", "/closed/messages", FAR, json=MESSAGE, **credentials) == OK
    assert await ask(edge, "GET", "/closed/apiKeys", FAR, **credentials) == FORBIDDEN
    assert await ask(edge, "GET", "/all/stats", FAR, **credentials) == UNAUTHORIZED


async def test_the_operator_creates_tenants_over_http(edge: Starlette) -> None:
    credentials = {"authorization": f"Bearer {OPERATOR}"}
    new = {"tenant": "new", "settings": {"openTo": "OPENNESS_NOBODY"}}
    assert await ask(edge, "POST", "", json=new) == UNAUTHORIZED
    assert await ask(edge, "POST", "", FAR, json=new, **credentials) == OK
    changes = {"settings": {"origins": ["https://example.com"]}, "updateMask": "origins"}
    assert await ask(edge, "PATCH", "/new", FAR, json=changes, **credentials) == OK
    assert await ask(edge, "GET", "?pageSize=1", FAR, **credentials) == OK
    assert await ask(edge, "POST", "/new:suspend", FAR, **credentials) == OK
    assert await ask(edge, "DELETE", "/new", FAR, **credentials) == OK
    assert await ask(edge, "GET", "/new", FAR, **credentials) == (404, "UNKNOWN_TENANT")
