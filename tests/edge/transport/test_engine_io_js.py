"""socket.io-client, the JavaScript library, as a client of an edge."""

from __future__ import annotations

import asyncio

import pytest

from tests.edge.transport.edge_loopback import PATIENCE_S, edge_and_link
from tests.support.node import node_command
from tests.support.processes import ROOT, Process


@pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
async def test_socket_io_client_sends_receives_and_reconnects(transports: str) -> None:
    command = [*node_command("socket.io-client"), str(ROOT / "tests" / "node" / "socket_io.mjs")]
    async with edge_and_link() as (edge, link):
        # Not by the event loop: uvloop forks, which does not go well with gRPC's threads.
        node = Process([*command, f"http://{edge.address}", transports], {}, "node", ROOT)

        async def happened() -> str:
            return (await asyncio.to_thread(node.line, bool, PATIENCE_S)).strip()

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
            node.close()
