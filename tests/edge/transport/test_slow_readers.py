"""Slow readers over real sockets: closed alone, or holding the router back together."""

from __future__ import annotations

import asyncio

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedLink,
    accepted,
    closed,
    edge_and_link,
    hears,
    running_edge,
    running_router,
    upgrade,
)

TEXT = "x" * 50_000


async def not_reading(edge: Edge, link: ScriptedLink, topic: int = 1) -> asyncio.StreamWriter:
    """Connect a client whose TCP connection takes no more than the kernel and its own small buffer hold."""
    reader, writer = await edge.raw()
    writer.write(upgrade())
    await link.accept(topic)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    return writer


async def congest(edge: Edge, link: ScriptedLink) -> int:
    """Publish until clients together take less than comes; returns how many messages that took.

    Each is sent once the one before it has been taken in: congestion ends by itself, as those who take
    nothing are closed, and a sender that waits for credit would miss it.
    """
    counts = edge.runtime.core.counts
    sent = 0
    async with asyncio.timeout(PATIENCE_S):
        while not edge.runtime.core.backpressure.is_congested:
            sent += 1
            before = counts.batches_in
            await link.publish(sent, TEXT)
            await edge.until(lambda: counts.batches_in > before)  # noqa: B023
    return sent


async def publish_until_one_is_closed(edge: Edge, link: ScriptedLink) -> None:
    """Publish until a client is closed as slow."""
    seq = 0
    async with asyncio.timeout(PATIENCE_S):
        while not edge.runtime.core.counts.slow_consumers:
            seq += 1
            await link.publish(seq, TEXT)


async def test_a_slow_reader_is_closed_without_delaying_the_others() -> None:
    async with edge_and_link(outbox_bytes=1 << 17) as (edge, link):
        fast, number = await accepted(edge, link)
        slow = await not_reading(edge, link, topic=0)
        seq = 0
        async with asyncio.timeout(PATIENCE_S):
            while not edge.runtime.core.counts.slow_consumers:
                seq += 1
                await link.publish(seq, TEXT)
                assert (await hears(fast))["position"]["seq"] == seq
                assert edge.runtime.core.backpressure.total_bytes <= 1 << 17
        assert edge.runtime.core.backpressure.backlogged == []
        assert not edge.runtime.core.backpressure.is_congested
        # It takes neither the messages nor the close: its connection is aborted.
        assert (await link.next("closed")).connection != number
        slow.close()
        await fast.close()


async def test_a_slow_reader_that_reads_again_is_told_why_it_is_closed_and_missed_nothing_before() -> None:
    async with edge_and_link(outbox_bytes=1 << 17) as (edge, link):
        slow, _ = await accepted(edge, link, max_queue=1)
        slow.transport.pause_reading()
        await publish_until_one_is_closed(edge, link)
        slow.transport.resume_reading()
        frames = []
        while not frames or frames[-1]["type"] == "message":
            frames.append(await hears(slow))
        assert [frame["position"]["seq"] for frame in frames[:-1]] == list(range(1, len(frames)))
        assert frames[-1]["reason"] == "SLOW_CONSUMER"
        assert await closed(slow) == 4000


async def test_a_client_that_has_caught_up_counts_as_lagging_no_longer() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await accepted(edge, link, max_queue=1)
        client.transport.pause_reading()
        seq = 0
        while edge.runtime.core.backpressure.total_bytes < 1 << 20:
            seq += 1
            await link.publish(seq, TEXT)
        client.transport.resume_reading()
        for expected in range(1, seq + 1):
            assert (await hears(client))["position"]["seq"] == expected
        await edge.until(lambda: edge.runtime.core.backpressure.total_bytes == 0)
        await client.close()


async def test_clients_that_lag_together_hold_the_router_back_until_they_catch_up() -> None:
    async with edge_and_link(outbox_bytes=4 << 20, outbox_total_bytes=1 << 20, link_window=2) as (edge, link):
        client, _ = await accepted(edge, link, max_queue=1)
        await edge.until(lambda: link.credit == 2)
        client.transport.pause_reading()
        sent = await congest(edge, link)
        while link.credit:
            sent += 1
            await link.publish(sent, TEXT)
        client.transport.resume_reading()
        for expected in range(1, sent + 1):
            assert (await hears(client))["position"]["seq"] == expected
        await edge.until(lambda: link.credit == 2)
        assert not edge.runtime.core.backpressure.is_congested
        await client.close()


async def test_who_takes_nothing_while_the_router_is_held_back_is_closed_once() -> None:
    async with edge_and_link(outbox_bytes=4 << 20, outbox_total_bytes=1 << 20, link_window=2) as (edge, link):
        await edge.until(lambda: link.credit == 2)
        dead = await not_reading(edge, link)
        await publish_until_one_is_closed(edge, link)
        await link.next("closed")
        assert edge.runtime.core.counts.slow_consumers == 1
        await edge.until(lambda: link.credit == 2)
        dead.close()


async def test_a_link_lost_while_the_router_is_held_back_is_made_again_with_all_its_credit() -> None:
    settings = {"outbox_bytes": 4 << 20, "outbox_total_bytes": 1 << 20, "link_window": 2}
    async with running_router() as router, running_edge(router.address, **settings) as edge:
        link = await router.link()
        dead = await not_reading(edge, link)
        await congest(edge, link)
        link.end()
        again = await router.link()
        await edge.until(lambda: not edge.runtime.core.backpressure.is_congested)
        await edge.until(lambda: again.credit == 2)
        client, _ = await accepted(edge, again)
        await again.publish(1)
        assert (await hears(client))["position"]["seq"] == 1
        await client.close()
        dead.close()
