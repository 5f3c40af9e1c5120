"""Engine.IO sessions with TLS, behind a path prefix: python-socketio moves one to a WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import certs
import pytest
import socketio

from tests.edge.transport.edge_loopback import PATIENCE_S, edge_and_link
from tests.edge.transport.engine_io_client import API
from tests.support.certificates import Certificates


@pytest.mark.parametrize("transports", [["polling"], ["polling", "websocket"]], ids=lambda names: names[-1])
async def test_a_client_connects_by_tls_below_a_prefix(tmp_path: Path, transports: list[str]) -> None:
    ours = Certificates(tmp_path)
    files = {"tls_cert": ours.edge, "tls_key": certs.key_of(ours.edge), "path_prefix": "/chat"}
    async with (
        edge_and_link(**files) as (edge, link),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ours.trusting)) as http,
    ):
        client = socketio.AsyncClient(http_session=http, reconnection=False)
        url = f"https://{edge.address}"
        coming = asyncio.ensure_future(
            client.connect(
                url, headers=API, socketio_path="chat/ws", transports=transports, wait_timeout=PATIENCE_S
            )
        )
        number = await link.accept()
        await coming
        said = {"ver": 1, "msg_id": "m1", "type": "sys_std", "payload": "x" * 50_000}
        calling = asyncio.ensure_future(client.call("message", said, timeout=PATIENCE_S))
        assert (await link.next("frame")).frame.message.id == "m1"
        await link.ack(number, "m1")
        await calling
        assert client.transport() == transports[-1]
        await client.disconnect()
        await link.next("closed")
