"""Links to routers that work, misbehave, or are gone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from structlog.testing import capture_logs
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import RouterEntry, TopicsJoined

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedRouter,
    accepted,
    closed,
    connecting,
    edge_and_link,
    hears,
    running_edge,
    running_router,
    say,
)


@asynccontextmanager
async def tcp_server(answer: bytes) -> AsyncIterator[str]:
    """Run a server that answers with something other than gRPC, or not at all."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if answer:
            await reader.read(1)
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        # A connection that was accepted takes the loop some turns to reach `serve`.
        for _ in range(5):
            await asyncio.sleep(0)
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def no_edge_service() -> AsyncIterator[str]:
    """Run a gRPC server without EdgeService."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def another_version(minor: int) -> AsyncIterator[str]:
    router = ScriptedRouter()
    router.minor = minor
    async with running_router(router=router):
        yield router.address


@asynccontextmanager
async def silent_router() -> AsyncIterator[str]:
    router = ScriptedRouter()
    router.welcomes = False
    async with running_router(router=router):
        yield router.address


WRONG = {
    "HTTP": (tcp_server, (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",), "no gRPC server"),
    "silent TCP": (tcp_server, (b"",), "no welcome within"),
    "no service": (no_edge_service, (), "no EdgeService"),
    "version": (another_version, (9,), f"v1.9 and v1.{catalogue.CONTRACT_MINOR}"),
    "no welcome": (silent_router, (), "no welcome within"),
}


async def logged(logs: list[Any], edge: Edge, part: str) -> None:
    await edge.until(lambda: any(part in line.get("problem", "") for line in logs))


@pytest.mark.parametrize("wrong", list(WRONG))
async def test_what_is_no_router_is_named_in_one_line_however_often_it_is_tried(wrong: str) -> None:
    serve, arguments, words = WRONG[wrong]
    with capture_logs() as logs:
        async with serve(*arguments) as address, running_edge(address) as edge:  # type: ignore[operator]
            await logged(logs, edge, words)
            if wrong != "silent TCP" and wrong != "no welcome":
                await asyncio.sleep(0.1)
            assert not edge.linked.is_set()
    lines = [line for line in logs if line["log_level"] == "warning"]
    assert len(lines) == 1, lines
    assert "\n" not in lines[0]["problem"]


async def test_an_edge_links_once_a_right_router_appears() -> None:
    async with running_router() as first:
        port = int(first.address.rpartition(":")[2])
    with capture_logs() as logs:
        async with running_edge(first.address) as edge:
            await edge.until(lambda: bool(logs))
            assert not edge.linked.is_set()
            async with running_router(port) as router:
                link = await router.link()
                assert link.hello.edge_id.startswith("edge-")
                await asyncio.wait_for(edge.linked.wait(), PATIENCE_S)
    assert logs[0]["event"] == "no link to the router; trying again"
    assert "linked to a router" in {line["event"] for line in logs}
    # Attempts may fail for one reason after another; each is logged once.
    problems = [line["problem"] for line in logs if "problem" in line]
    assert len(problems) == len(set(problems))


async def test_a_router_one_minor_version_apart_is_linked_to() -> None:
    router = ScriptedRouter()
    router.minor += 1
    async with running_router(router=router), running_edge(router.address) as edge:
        await asyncio.wait_for(edge.linked.wait(), PATIENCE_S)


async def test_the_same_edge_says_the_same_name_and_boot_on_each_link() -> None:
    async with running_router() as router, running_edge(router.address, edge_id="mine") as edge:
        first = await router.link()
        first.end()
        second = await router.link()
        assert first.hello == second.hello
        assert second.hello.edge_id == "mine"
        await edge.until(lambda: edge.runtime.core.counts.links == 2)


async def test_a_router_that_names_a_topic_it_has_not_opened_loses_the_link_and_not_the_edge() -> None:
    async with running_router() as router, running_edge(router.address) as edge:
        first = await router.link()
        _, number = await accepted(edge, first)
        with capture_logs() as logs:
            await first.send(RouterEntry(join=TopicsJoined(connection=number, topics=[99])))
            second = await router.link()
        assert (await second.next("topic")).address.tenant == "t"
        assert (await second.next("opened")).restored
        assert "the router sent a frame for unknown topic 99" in [log.get("problem") for log in logs]


async def test_clients_stay_while_their_router_restarts_and_what_was_not_answered_is_sent_again() -> None:
    async with running_router() as router, running_edge(router.address) as edge:
        link = await router.link()
        client, number = await accepted(edge, link)
        await client.send(say("m1"))
        await client.send(say("m2"))
        await link.next("frame")
        await link.ack(number, "m1")
        assert (await hears(client))["id"] == "m1"
        await link.publish(7)
        assert (await hears(client))["position"]["seq"] == 7
        link.end()
        again = await router.link()
        assert (await again.next("topic")).position.seq == 7
        opened = await again.next("opened")
        assert (opened.restored, opened.connection) == (True, number)
        assert (await again.next("frame")).frame.message.id == "m2"
        await again.accept(topic=5, opened=opened)
        await again.ack(number, "m2")
        await again.publish(8, topic=5)
        assert (await hears(client))["id"] == "m2"
        assert (await hears(client))["position"]["seq"] == 8
        await client.close()


async def test_what_clients_say_while_there_is_no_router_is_sent_when_there_is_one() -> None:
    async with running_router() as first, running_edge(first.address) as edge:
        link = await first.link()
        client, number = await accepted(edge, link)
        port = int(first.address.rpartition(":")[2])
        link.end()
        first.welcomes = False
        await edge.until(lambda: not edge.runtime.core.uplink.is_up)
        await client.send(say("m1"))
        await edge.until(lambda: "m1" in edge.runtime.core.connections[number].unanswered)
        await client.send('{"type":"ping","id":"p"}')
        assert (await hears(client))["type"] == "pong"
        first.welcomes = True
        while not (link := await first.link()).credit:
            link.end()
        await link.next("topic")
        await link.next("opened")
        assert (await link.next("frame")).frame.message.id == "m1"
        assert port
        await client.close()


async def test_who_connects_while_there_is_no_link_is_accepted_once_there_is() -> None:
    async with running_router() as router:
        router.welcomes = False
        async with running_edge(router.address) as edge:
            coming = connecting(edge)
            await edge.until(lambda: len(edge.runtime.core.handshakes) == 1)
            router.welcomes = True
            while not (link := await router.link()).credit:
                link.end()
            await link.accept()
            client = await coming
            assert (await hears(client))["type"] == "connected"
            await client.close()


async def test_stopping_closes_all_with_1012_and_takes_no_more() -> None:
    async with edge_and_link(unanswered=1) as (edge, link):
        clients = [(await accepted(edge, link, topic=0 if n else 1))[0] for n in range(5)]
        await clients[0].send(say("held"))
        opening, resuming = connecting(edge), await edge.connect("resume=frame")
        await edge.until(lambda: edge.runtime.core.sessions.opening == 1)
        stopping = asyncio.ensure_future(edge.runtime.close_all())
        for client in clients:
            assert (await hears(client))["reason"] == "RESTARTING"
            assert await closed(client) == 1012
        assert await closed(await opening) == 1012
        await resuming.send('{"type":"resume","positions":[]}')
        assert (await hears(resuming))["reason"] == "RESTARTING"
        assert await closed(resuming) == 1012
        await asyncio.wait_for(stopping, PATIENCE_S)
        assert edge.runtime.core.connections == {}
        assert not edge.runtime.make_room_for_handshake()
