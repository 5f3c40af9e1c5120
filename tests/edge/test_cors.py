"""Web pages of a tenant's origins may call every route and read every response, errors included."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.edge.test_foreign_callers import http_requests
from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedRouter,
    running_edge,
    running_router,
)
from tests.support.declared_tenants import policy

#: Paths that name no tenant, so they belong to no page.
NO_TENANT = {"/v1/tenants", "/v1/audit", "/api/v1/embed/logo"}
#: Paths whose tenant a preflight names by its origin.
BY_ORIGIN = {"/api/v1/files/images", "/api/v1/files/documents"}
PAGE, OTHER = "https://a.example", "https://evil.example"
#: The page's origin as an operator may write it; browsers write the other.
DECLARED = "https://A.example:443"


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    router = ScriptedRouter()
    router.policies = [
        policy(
            "t",
            tokens=["s3cret"],
            pipelines=["p"],
            web_page_bots=["p"],
            default_agent="a",
            origins=[DECLARED],
            allow_credentials=True,
        ),
        policy("any", tokens=["s4cret"]),
    ]
    async with running_router(router=router), running_edge(router.address) as edge:
        await router.link()
        await edge.until(lambda: edge.runtime.tenants.are_known)
        yield edge


@pytest.fixture
async def http(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://{edge.address}", trust_env=False, timeout=PATIENCE_S
    ) as client:
        yield client


def preflight(method: str, origin: str = PAGE) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type",
        "sec-fetch-site": "cross-site",
    }


async def test_every_route_of_a_tenant_answers_preflights(edge: Edge, http: httpx.AsyncClient) -> None:
    for asked in http_requests(edge):
        answer = await http.options(asked.path, headers=preflight(asked.method))
        headers = answer.headers
        assert (answer.status_code, answer.content) == (204, b""), asked
        assert asked.method in headers["allow"]
        if asked.path in NO_TENANT:
            assert "access-control-allow-origin" not in headers
            continue
        assert "access-control-allow-origin" in headers, (asked, headers)
        assert headers["access-control-allow-origin"] == PAGE, asked
        assert headers["access-control-allow-credentials"] == "true"
        assert asked.method in headers["access-control-allow-methods"]
        assert "authorization" in headers["access-control-allow-headers"]
        assert headers["vary"] == "Origin"
        if asked.path in BY_ORIGIN:
            continue
        refused = (await http.options(asked.path, headers=preflight(asked.method, OTHER))).headers
        assert "access-control-allow-origin" not in refused
        assert refused["vary"] == "Origin"


async def test_a_page_may_use_openais_sdk(http: httpx.AsyncClient) -> None:
    """In a browser, the SDK sets these headers and reads those of the response."""
    path = "/openai/t/v1/chat/completions"
    headers = (await http.options(path, headers=preflight("POST"))).headers
    stainless = "arch lang os package-version retry-count runtime runtime-version timeout"
    sent = {
        "authorization",
        "content-type",
        "user-agent",
        *(f"x-stainless-{name}" for name in stainless.split()),
    }
    sent |= {"x-conversation-id", "idempotency-key"}
    assert sent <= set(headers["access-control-allow-headers"].split(", "))
    answer = await http.post(path, headers={"origin": PAGE, "content-type": "application/json"}, content="{}")
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert {"x-conversation-id", "x-should-retry", "retry-after", "retry-after-ms"} <= exposed


async def test_a_page_reads_the_errors_of_every_route(edge: Edge, http: httpx.AsyncClient) -> None:
    for asked in http_requests(edge):
        if asked.path in NO_TENANT:
            continue
        for headers in ({"origin": PAGE}, {"origin": PAGE, "authorization": "Bearer s3cret"}):
            if asked.connects and "authorization" in headers:
                # This router does not answer.
                continue
            answer = await http.request(asked.method, asked.path, headers=headers)
            assert answer.status_code >= 400 or asked.path.partition("?")[0].endswith(("flush", "widget.js"))
            assert answer.headers["access-control-allow-origin"] == PAGE, (asked, answer.text)
            assert answer.headers["access-control-allow-credentials"] == "true"
    wrong_method = await http.put("/v1/tenants/t/messages", headers={"origin": PAGE})
    assert (wrong_method.status_code, wrong_method.headers["access-control-allow-origin"]) == (405, PAGE)
    wrong_dialect_method = await http.put("/api/v1/tenants/t/connections", headers={"origin": PAGE})
    assert (wrong_dialect_method.status_code, wrong_dialect_method.headers["vary"]) == (405, "Origin")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/tenants/any/messages", "*"),
        (f"/v1/events?{QUERY.replace('tenant=t', 'tenant=any')}", "*"),
        ("/api/v1/tenants/any/connections", "*"),
        ("/v1/tenants/nobody/messages", None),
        ("/v1/events?tenant=nobody", None),
        ("/api/v1/tenants/nobody/connections", None),
        ("/api/v1/pipelines/nobodys/ws/connections", None),
        ("/v1/nothing", None),
        ("/healthz", None),
    ],
)
async def test_tenants_without_origins_allow_any_page_and_unknown_ones_none(
    http: httpx.AsyncClient, path: str, allowed: str | None
) -> None:
    preflighted = await http.options(path, headers=preflight("GET"))
    refused = await http.get(path, headers={"origin": PAGE})
    for answer in (preflighted, refused):
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in answer.headers
