"""An edge behind a path prefix serves everything below it, and probes everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
import websockets
from pydantic import ValidationError
from trunkline_edge.settings import EdgeSettings

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    answer,
    edge_and_link,
    parse,
)

PREFIX = "/chat/eu-1"


@pytest_asyncio.fixture
async def linked() -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    async with edge_and_link(path_prefix=f"{PREFIX}/") as linked:
        yield linked


async def test_sockets_and_event_streams_are_below_the_prefix(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    for path in ("/v1/connect", f"{PREFIX}x/v1/connect", f"/x{PREFIX}/v1/connect", f"{PREFIX}v1/connect"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{edge.address}{path}?{QUERY}", proxy=None)
        assert refused.value.response.status_code == 404
    accepting = asyncio.ensure_future(link.accept())
    async with websockets.connect(f"ws://{edge.address}{PREFIX}/v1/connect?{QUERY}", proxy=None) as client:
        await accepting
        assert parse(await client.recv())["type"] == "connected"
    await link.next("closed")
    accepting = asyncio.ensure_future(link.accept())
    async with httpx.AsyncClient(trust_env=False) as http:
        async with http.stream("GET", f"http://{edge.address}{PREFIX}/v1/events?{QUERY}") as response:
            await accepting
            assert response.status_code == 200
        assert (await http.get(f"http://{edge.address}/v1/events?{QUERY}")).status_code == 404


async def test_http_routes_are_below_the_prefix_and_probes_everywhere(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    edge, _ = linked
    url = f"http://{edge.address}"
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as http:
        document = (await http.get(f"{PREFIX}/openapi.json")).json()
        assert document["servers"] == [{"url": PREFIX}]
        for probe in ("/healthz", "/readyz", "/metrics"):
            for path in (probe, PREFIX + probe):
                assert (await http.get(path)).status_code == 200
        call = "/v1/tenants/t/connections"
        assert "NO_SUCH_PATH" in (await http.get(call)).text
        # The scripted router has no such RPC.
        assert (await http.get(PREFIX + call)).status_code == 501
        # A dialect's route.
        messages = "/api/v1/pipelines/p/ws/messages/person"
        assert "NO_SUCH_PATH" in (await http.get(messages)).text
        assert "NO_SUCH_PATH" not in (await http.get(PREFIX + messages)).text
        for root in ("/", PREFIX, f"{PREFIX}/"):
            assert (await http.get(root)).status_code == 404


async def test_the_prefix_is_removed_from_every_form_of_target(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, _ = linked
    reader, writer = await edge.raw()
    for target in (f"http://x{PREFIX}/healthz?a=/b", f"{PREFIX}/healthz?c"):
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
    received = await answer(reader)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b"HTTP/1.1 404 Not Found") == 1
    writer.close()


@pytest.mark.parametrize(
    ("given", "kept"), [("", ""), ("/", ""), ("/chat", "/chat"), ("/chat/", "/chat"), ("/a/b.c~d_e-f", None)]
)
def test_a_prefix_is_a_path(given: str, kept: str | None) -> None:
    assert EdgeSettings(path_prefix=given).path_prefix == (given if kept is None else kept)


@pytest.mark.parametrize(
    "given", ["chat", "/a//b", "/..", "/a/./b", "/a b", "/a?b", "/%41", "http://x", "/ä"]
)
def test_anything_else_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="must be a path"):
        EdgeSettings(path_prefix=given)
