"""A dialect that sends nothing on connect and close: that of maim_message's API server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import websockets

from tests.edge.transport.edge_loopback import PATIENCE_S, closed, edge_and_link, parse, received

if TYPE_CHECKING:
    from tests.edge.transport.edge_loopback import Edge


def connecting(edge: Edge) -> asyncio.Future[Any]:
    url = f"ws://{edge.address}/ws?api_key=t:a&platform=web"
    return asyncio.ensure_future(_connect(url))


async def _connect(url: str) -> Any:
    return await websockets.connect(url, compression=None, open_timeout=PATIENCE_S)


async def test_the_handshake_is_answered_once_the_router_has_answered_and_nothing_else_is_said() -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge)
        opened = await link.next("opened")
        assert not coming.done()
        assert edge.runtime.core.handshakes
        await link.accept(opened=opened)
        client = await coming
        assert edge.runtime.core.handshakes.is_empty
        await client.send('{"msg_id":"m1"}')
        assert parse(await received(client))["meta"]["acked_msg_id"] == "m1"
        await client.close()


async def test_a_close_has_its_code_and_nothing_comes_before_it() -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge)
        number = await link.accept()
        client = await coming
        await link.close(number, 1012, "RESTARTING")
        with pytest.raises(websockets.ConnectionClosed):
            await received(client)
        assert await closed(client) == 1012


async def test_a_refusal_by_the_router_is_an_http_status() -> None:
    async with edge_and_link() as (edge, link):
        coming = connecting(edge)
        opened = await link.next("opened")
        await link.close(opened.connection, 4504, "UNKNOWN_TENANT")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await coming
        assert refused.value.response.status_code == 404
        await edge.until(lambda: not edge.runtime.core.handshakes)
