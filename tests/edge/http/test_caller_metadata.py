"""Callers are checked before their bodies are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.fair_worker import FairWorker
from trunkline_edge.http.known_keys import MAX_KNOWN, KnownKeys
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.transcoding import routes
from trunkline_edge.transport import body_budget
from trunkline_edge.transport.body_budget import STRANGERS
from trunkline_runtime.router_addresses import RouterAddresses

from tests.edge.http.token_admission import token_callers
from tests.support.declared_tenants import policy

pytestmark = pytest.mark.io
JSON = {"content-type": "application/json"}


@pytest.fixture
def bodies() -> BodyReader:
    return BodyReader()


@pytest.fixture
async def http(bodies: BodyReader) -> AsyncIterator[httpx.AsyncClient]:
    """An edge's routes without a router; tenant `open` is open to this machine, `closed` to nobody."""
    tenants = TenantPolicies([policy("open"), policy("closed", tokens=["t1"])])
    calls = RouterClient(RouterAddresses("127.0.0.1:1"))
    served = routes(calls, CallerMetadata(tenants), token_callers(tenants), bodies, FairWorker())
    transport = httpx.ASGITransport(Starlette(routes=served))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
        yield client
    await calls.close()


def reason_of(response: httpx.Response) -> str:
    return str(response.json()["details"][0]["reason"])


async def test_a_refusal_comes_before_the_body_is_looked_at(http: httpx.AsyncClient) -> None:
    refused = await http.post("/tenants/closed/messages", content=b"no json")
    assert (refused.status_code, reason_of(refused)) == (401, "UNAUTHORIZED")
    assert refused.headers["www-authenticate"] == "Bearer"
    allowed = await http.post("/tenants/open/messages", json={"parts": []})
    assert (allowed.status_code, reason_of(allowed)) == (503, "ROUTER_UNAVAILABLE")
    shown = await http.post(
        "/tenants/closed/messages", json={"parts": []}, headers={"x-api-key": "looked at later"}
    )
    assert (shown.status_code, reason_of(shown)) == (503, "ROUTER_UNAVAILABLE")


async def test_a_body_is_not_taken_from_those_who_may_not_ask(http: httpx.AsyncClient) -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        taken += 1
        yield b"{}"

    for method, path in (
        ("POST", "/tenants/closed/messages"),
        ("POST", "/tenants"),
        ("PATCH", "/tenants/open"),
        ("POST", "/tenants/new:suspend"),
    ):
        refused = await http.request(method, path, content=body(), headers=JSON)
        assert (refused.status_code, reason_of(refused)) == (401, "UNAUTHORIZED")
    unknown = await http.post(
        "/tenants/new/messages", content=body(), headers={"content-type": "application/json"}
    )
    assert (unknown.status_code, reason_of(unknown)) == (404, "UNKNOWN_TENANT")
    assert taken == 0


async def test_calls_that_are_for_no_tenant_that_exists_get_to_the_router(http: httpx.AsyncClient) -> None:
    key = {"authorization": "Bearer the operator's"}
    new = {"tenant": "new", "settings": {"openTo": "OPENNESS_ANYBODY"}}
    for answer in (
        await http.get("/tenants", headers=key),
        await http.get("/tenants?page_size=3&after=a", headers=key),
        await http.post("/tenants", json=new, headers=key),
        await http.patch("/tenants/open", json={"settings": {}, "updateMask": "limits,openTo"}, headers=key),
        await http.delete("/tenants/open", headers=key),
        await http.delete("/tenants/open/apiKeys/k1", headers=key),
    ):
        assert (answer.status_code, reason_of(answer)) == (503, "ROUTER_UNAVAILABLE")


async def test_a_body_cannot_name_another_tenant(http: httpx.AsyncClient) -> None:
    other = await http.post("/tenants/open/messages", json={"address": {"tenant": "closed"}, "parts": []})
    assert (other.status_code, reason_of(other)) == (400, "INVALID_ARGUMENT")
    query = await http.get("/tenants/open/messages", params={"address.tenant": "closed"})
    assert (query.status_code, reason_of(query)) == (400, "INVALID_ARGUMENT")
    same = await http.post("/tenants/open/messages", json={"address": {"tenant": "open"}, "parts": []})
    assert reason_of(same) == "ROUTER_UNAVAILABLE"


async def test_bodies_are_bounded_together_and_let_go(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_budget, "MAX_TOTAL_BYTES", 1000)
    monkeypatch.setattr(body_budget, "SMALL_BODY_BYTES", 0)
    large = await http.post("/tenants/open/messages", json={"parts": ["x" * 2000]})
    assert (large.status_code, reason_of(large), large.headers["retry-after"]) == (429, "OVERLOADED", "1")
    for _ in range(20):
        small = await http.post("/tenants/open/messages", json={"parts": [], "replyTo": "x" * 500})
        assert reason_of(small) == "ROUTER_UNAVAILABLE"


async def test_a_key_that_the_router_has_not_accepted_takes_no_share_of_the_tenant() -> None:
    callers = CallerMetadata(TenantPolicies([policy("open"), policy("closed", tokens=["t1"])]))
    with_key, with_secret, without = (
        Request({"type": "http", "headers": headers, "client": ("127.0.0.1", 1)})
        for headers in ([(b"x-api-key", b"k1")], [(b"x-api-key", b"t1")], [])
    )
    assert callers.share(with_key, "closed") == STRANGERS
    assert callers.share(with_secret, "closed") == "closed"
    assert callers.share(without, "open") == "open"
    callers.accepted(with_key, "closed")
    assert callers.share(with_key, "closed") == "closed"
    assert callers.share(with_key, "open") == STRANGERS
    callers.accepted(without, "open")


def test_the_keys_accepted_last_are_known() -> None:
    known = KnownKeys()
    for number in range(MAX_KNOWN):
        known.add("t", str(number))
    known.add("t", "0")
    known.add("t", "new")
    assert (known.has("t", "0"), known.has("t", "1"), known.has("t", "new")) == (True, False, True)
    assert not known.has("u", "new")


async def test_a_body_that_does_not_come_is_not_waited_for(
    http: httpx.AsyncClient, bodies: BodyReader
) -> None:
    bodies.timeout_s = 0.05

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    late = await http.post(
        "/tenants/open/messages", content=never(), headers={"content-type": "application/json"}
    )
    assert (late.status_code, reason_of(late)) == (408, "BODY_TIMEOUT")
    assert late.headers["connection"] == "close"
