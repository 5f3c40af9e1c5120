"""Who may call is asked before anything of a request is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from trunkline.v1 import catalogue

from edge.http import bodies
from edge.http.calls import CallFailed, RouterCalls
from edge.http.transcoding import routes


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
async def http(asked: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    """An edge's routes without a router, closed to the tenant `closed`."""

    def authorize(request: Request, tenant: str) -> None:
        asked.append(tenant)
        if tenant == "closed":
            raise CallFailed.of(catalogue.UNAUTHORIZED.refused(problem="no token"))

    calls = RouterCalls("127.0.0.1:1")
    transport = httpx.ASGITransport(Starlette(routes=routes(calls, authorize)))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge/v1/tenants") as client:
        yield client
    await calls.close()


def reason_of(response: httpx.Response) -> str:
    return str(response.json()["details"][0]["reason"])


async def test_a_refusal_comes_before_the_body_is_looked_at(
    http: httpx.AsyncClient, asked: list[str]
) -> None:
    refused = await http.post("/closed/messages", content=b"no json")
    assert (refused.status_code, reason_of(refused)) == (401, "UNAUTHORIZED")
    assert refused.headers["www-authenticate"] == "Bearer"
    allowed = await http.post("/open/messages", json={"parts": []})
    assert (allowed.status_code, reason_of(allowed)) == (503, "ROUTER_UNAVAILABLE")
    assert asked == ["closed", "open"]


async def test_a_body_cannot_name_another_tenant(http: httpx.AsyncClient) -> None:
    other = await http.post("/open/messages", json={"address": {"tenant": "closed"}, "parts": []})
    assert (other.status_code, reason_of(other)) == (400, "INVALID_ARGUMENT")
    query = await http.get("/open/messages", params={"address.tenant": "closed"})
    assert (query.status_code, reason_of(query)) == (400, "INVALID_ARGUMENT")
    same = await http.post("/open/messages", json={"address": {"tenant": "open"}, "parts": []})
    assert reason_of(same) == "ROUTER_UNAVAILABLE"


async def test_bodies_are_bounded_together_and_let_go(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_TOTAL_BYTES", 1000)
    large = await http.post("/open/messages", json={"parts": ["x" * 2000]})
    assert (large.status_code, reason_of(large), large.headers["retry-after"]) == (429, "OVERLOADED", "1")
    for _ in range(20):
        small = await http.post("/open/messages", json={"parts": [], "replyTo": "x" * 500})
        assert reason_of(small) == "ROUTER_UNAVAILABLE"


async def test_a_body_that_does_not_come_is_not_waited_for(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    late = await http.post("/open/messages", content=never(), headers={"content-type": "application/json"})
    assert (late.status_code, reason_of(late)) == (408, "BODY_TIMEOUT")
    assert late.headers["connection"] == "close"
