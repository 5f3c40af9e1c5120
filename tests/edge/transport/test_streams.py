"""Streamed replies over real sockets: windows, and clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.request import urlopen

import pytest
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, MESSAGE_STATE_COMPLETE, MESSAGE_STATE_OPEN

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    accepted,
    closed,
    connecting,
    edge_and_link,
    hears,
)


def delta(index: int, text: str) -> RouterEntry:
    """Return a delta of the message `r` of topic 1."""
    entry = RouterEntry()
    entry.publish.topic = 1
    added = entry.publish.frame.delta
    added.message_id, added.index, added.text = "r", index, text
    return entry


def opening() -> RouterEntry:
    """Return the entry that opens the message `r` of topic 1."""
    entry = RouterEntry()
    entry.publish.topic = 1
    entry.publish.frame.message.id = "r"
    entry.publish.frame.message.state = MESSAGE_STATE_OPEN
    return entry


def ending() -> RouterEntry:
    """Return the entry that ends the message `r`."""
    entry = RouterEntry()
    entry.publish.topic = 1
    change = entry.publish.frame.change
    change.message_id, change.kind, change.state = "r", CHANGE_KIND_ENDED, MESSAGE_STATE_COMPLETE
    return entry


async def window(edge: Edge, link: ScriptedLink, extra: str) -> Any:
    """Return the window that a client is sent in `connected`."""
    coming = connecting(edge, query=QUERY + extra)
    await link.accept()
    client = await coming
    got = (await hears(client))["rollup_ms"]
    await client.close()
    return got


@pytest.mark.parametrize(("extra", "got"), [("", 70), ("&rollup_ms=0", 0), ("&rollup_ms=500", 500)])
async def test_a_client_may_choose_its_window(extra: str, got: int) -> None:
    async with edge_and_link(rollup_ms=70) as (edge, link):
        assert await window(edge, link, extra) == got


@pytest.mark.parametrize("value", ["501", "-1", "1.5", "", "x", "0x10", "%C2%B2", "%D9%A1", "9" * 5000])
async def test_a_window_that_cannot_be_is_refused(value: str) -> None:
    async with edge_and_link() as (edge, _):
        client = await edge.connect(f"{QUERY}&rollup_ms={value}")
        closing = await hears(client)
        assert closing["reason"] == "INVALID_ADDRESS"
        assert "rollup_ms: must be a whole number from 0 to 500" in closing["message"]
        await closed(client)


async def test_deltas_of_a_window_come_as_one_and_the_end_with_the_last_text() -> None:
    async with edge_and_link(rollup_ms=300) as (edge, link):
        client, _ = await accepted(edge, link)
        await link.send(opening())
        assert (await hears(client))["state"] == "open"
        for index in range(3):
            await link.send(delta(index, f"{index}"))
        assert await hears(client) == {"type": "delta", "text": "012"}
        await link.send(delta(3, "3"))
        await link.send(ending())
        assert await hears(client) == {"type": "delta", "text": "3"}
        assert (await hears(client))["kind"] == "ended"
        metrics = (await asyncio.to_thread(urlopen, f"http://{edge.address}/metrics")).read().decode()
        assert "trunkline_edge_deltas_received_total 4.0" in metrics
        assert "trunkline_edge_delta_frames_total 2.0" in metrics
        assert "trunkline_edge_deltas_delivered_total 4.0" in metrics
        await client.close()


async def stalled(edge: Edge, link: ScriptedLink, number: int, text: str) -> int:
    """Stream until the client's socket buffers; return the number of deltas."""
    index = 0
    connection = edge.runtime.core.connections[number]
    async with asyncio.timeout(PATIENCE_S):
        while not connection.has_backlog:
            await link.send(delta(index, text))
            index += 1
            await asyncio.sleep(0)
    return index


@pytest.mark.parametrize("rollup_ms", [0, 40])
async def test_for_a_client_that_does_not_read_deltas_gather_until_it_does(rollup_ms: int) -> None:
    async with edge_and_link(rollup_ms=rollup_ms) as (edge, link):
        client, number = await accepted(edge, link, max_queue=1, max_size=None)
        await link.send(opening())
        client.transport.pause_reading()
        count = await stalled(edge, link, number, "x" * 50_000)
        connection = edge.runtime.core.connections[number]
        before = edge.runtime.core.counts.delta_frames
        for index in range(count, count + 20):
            await link.send(delta(index, "y"))
        await edge.until(lambda: edge.runtime.core.counts.deltas_in == count + 20)
        # The sockets may still take something.
        assert edge.runtime.core.counts.delta_frames <= before + 2
        client.transport.resume_reading()
        text, frames = "", 0
        assert (await hears(client))["type"] == "message"
        while not text.endswith("y" * 20):
            text += (await hears(client))["text"]
            frames += "y" in text
        assert text == "x" * 50_000 * count + "y" * 20
        assert frames <= 3
        await edge.until(lambda: not connection.has_backlog)
        assert edge.runtime.core.backpressure.total_bytes == 0
        await client.close()


async def test_what_gathers_counts_as_buffered_and_a_client_that_never_reads_is_closed() -> None:
    async with edge_and_link(rollup_ms=0, outbox_bytes=1 << 18) as (edge, link):
        other, _ = await accepted(edge, link)
        client, number = await accepted(edge, link, topic=0, max_queue=1)
        await link.send(opening())
        assert (await hears(other))["type"] == "message"
        client.transport.pause_reading()
        connection = edge.runtime.core.connections[number]
        index = 0
        async with asyncio.timeout(PATIENCE_S):
            while not edge.runtime.core.counts.slow_consumers:
                await link.send(delta(index, "x" * 20_000))
                assert await hears(other) == {"type": "delta", "text": "x" * 20_000}
                # If the socket takes some after all, the gathered deltas are one oversize piece.
                limit = (1 << 18) + connection.oversize_bytes
                assert edge.runtime.core.backpressure.total_bytes <= limit
                index += 1
        assert edge.runtime.core.fanout.backlog_bytes(connection) == 0
        client.transport.resume_reading()
        assert await closed(client) == 4000
        await other.close()
