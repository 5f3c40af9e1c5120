"""socket.io-client, the JavaScript library, as a client of an edge."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from tests.edge.transport.edge_loopback import PATIENCE_S, edge_and_link
from tests.support.node import node_command
from tests.support.processes import ROOT


@pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
async def test_socket_io_client_sends_receives_and_reconnects(transports: str) -> None:
    command = [*node_command("socket.io-client"), str(ROOT / "tests" / "node" / "socket_io.mjs")]
    async with edge_and_link(heartbeat_s=3600) as (edge, link):
        url = f"http://{edge.address}"
        node = await asyncio.create_subprocess_exec(*command, url, transports, stdout=subprocess.PIPE)
        assert node.stdout is not None
        lines = node.stdout

        async def happened() -> str:
            line = await asyncio.wait_for(lines.readline(), PATIENCE_S)
            return line.decode().strip()

        async def talk(topic: int, number: int) -> None:
            """Acknowledge the client's message and publish another, in any order with an upgrade."""
            await link.next("frame")
            await link.ack(number, "m1")
            await link.publish(1, "x" * 50_000, topic=topic)
            expected = {"acknowledged with []", "heard 50000"}
            if await happened_first() == "polling" and "websocket" in transports:
                expected.add("upgraded to websocket")
            while expected:
                expected.remove(await happened())

        async def happened_first() -> str:
            return (await happened()).removeprefix("connected by ")

        try:
            number = await link.accept()
            await talk(1, number)
            await link.close(number, 1012, "RESTARTING")
            assert (await happened()).startswith("disconnected: transport ")
            while (entry := await asyncio.wait_for(link.entries.get(), PATIENCE_S)).WhichOneof(
                "entry"
            ) != "opened":
                pass
            await talk(2, await link.accept(2, entry.opened))
        finally:
            node.kill()
            await node.wait()
