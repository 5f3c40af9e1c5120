"""HTTP on the WebSockets' port."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.edge.transport.edge_loopback import PATIENCE_S, accepted, edge_and_link, running_edge


def client(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{address}", timeout=PATIENCE_S, trust_env=False)


async def test_health_readiness_and_metrics_are_served_on_one_kept_connection() -> None:
    async with edge_and_link() as (edge, link), client(edge.address) as http:
        websocket, _ = await accepted(edge, link)
        health = (await http.get("/healthz")).json()
        assert (health["status"], health["connections"]) == ("ok", 1)
        router = edge.runtime.settings.router
        ready = {"status": "ready", "linked": True, "router": router}
        assert (await http.get("/readyz")).json() == ready
        metrics = await http.get("/metrics")
        assert "trunkline_edge_connections 1.0\n" in metrics.text
        assert f'trunkline_edge_link_router{{router="{router}"}} 1.0\n' in metrics.text
        assert "trunkline_edge_connections_opened_total 1.0\n" in metrics.text
        assert metrics.headers["content-type"].startswith("text/plain")
        [pooled] = http._transport._pool.connections  # type: ignore[attr-defined]
        assert pooled.is_idle()
        await websocket.close()


async def test_an_edge_without_a_link_is_healthy_and_not_ready() -> None:
    async with running_edge("127.0.0.1:1") as edge, client(edge.address) as http:
        assert (await http.get("/healthz")).status_code == 200
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready", "linked": False})
        assert "trunkline_edge_link_up 0.0" in (await http.get("/metrics")).text


async def test_an_edge_that_is_stopping_is_not_ready() -> None:
    async with edge_and_link() as (edge, _), client(edge.address) as http:
        await edge.runtime.close_all()
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["linked"]) == (503, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/nothing", 404), ("GET", "/", 404), ("POST", "/healthz", 405), ("GET", "/v1/connect", 426)],
)
async def test_what_is_not_there_is_said_at_once(method: str, path: str, status: int) -> None:
    async with running_edge("127.0.0.1:1") as edge, client(edge.address) as http:
        body = b"x" * 100_000 if method == "POST" else b""
        assert (await http.request(method, path, content=body)).status_code == status


async def test_requests_that_come_together_are_all_answered() -> None:
    async with running_edge("127.0.0.1:1") as edge:
        reader, writer = await edge.raw()
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(request * 3)
        for _ in range(3):
            await asyncio.wait_for(reader.readuntil(b'"connections":0'), PATIENCE_S)
        writer.close()
