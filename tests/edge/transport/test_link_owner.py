"""Links of an edge that knows several routers: it follows the one that owns the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trunkline_edge.link.client
from structlog.testing import capture_logs
from trunkline_edge.link.diagnostics import CUT_OFF

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedLink,
    ScriptedRouter,
    accepted,
    hears,
    running_edge,
    running_router,
    say,
)
from tests.support.patience import patient


@asynccontextmanager
async def two_routers(owner: int) -> AsyncIterator[list[ScriptedRouter]]:
    """Run two routers, of which one owns the log; none for -1."""
    async with running_router() as first, running_router() as second:
        for number, each in enumerate((first, second)):
            await (each.take_over() if number == owner else each.lose())
        yield [first, second]


def at(routers: list[ScriptedRouter]) -> str:
    return ",".join(each.address for each in routers)


def problems(logs: list[Any]) -> list[tuple[str, str]]:
    found = [(line["router"], line["problem"]) for line in logs if "problem" in line]
    # All that gRPC may report if a stream is refused during a write.
    return [(router, problem) for router, problem in found if problem != CUT_OFF]


async def linked_to(edge: Edge, router: ScriptedRouter) -> ScriptedLink:
    """Wait until an edge has linked to a router; return the link."""
    link = await router.link()
    await edge.until(lambda: edge.runtime.core.uplink.is_up and edge.runtime.routers.in_use == router.address)
    return link


async def test_a_standby_is_passed_over_and_reported_once() -> None:
    async with two_routers(owner=1) as routers:
        with capture_logs() as logs:
            async with running_edge(at(routers)) as edge:
                await linked_to(edge, routers[1])
    # None if the watch reports the owner first.
    assert [problem.partition(":")[0] for _, problem in problems(logs)] in ([], ["it is a standby"])
    assert {router for router, _ in problems(logs)} <= {routers[0].address}
    assert [line["router"] for line in logs if line["event"] == "linked to a router"] == [routers[1].address]


async def test_an_edge_links_when_a_standby_takes_over_and_logs_each_problem_once() -> None:
    async with two_routers(owner=-1) as routers:
        with capture_logs() as logs:
            async with running_edge(at(routers)) as edge:
                await edge.until(lambda: routers[0].attempts >= 5)
                assert not edge.linked.is_set()
                await routers[0].take_over()
                await linked_to(edge, routers[0])
    reported = problems(logs)
    assert len(reported) == len(set(reported))
    assert routers[0].address in {router for router, _ in reported}


async def test_clients_stay_and_unanswered_frames_are_sent_to_the_router_that_took_over() -> None:
    async with running_router() as second:
        await second.lose()
        async with running_router() as first:
            await first.take_over()
            async with running_edge(at([first, second])) as edge:
                link = await first.link()
                client, number = await accepted(edge, link)
                await client.send(say("m1"))
                await client.send(say("m2"))
                await link.next("frame")
                await link.ack(number, "m1")
                assert (await hears(client))["id"] == "m1"
                await first.lose()
                link.end()
                await edge.until(lambda: second.attempts > 0)
                await second.take_over()
                again = await second.link()
                assert (await again.next("topic")).position.seq == 0
                opened = await again.next("opened")
                assert (opened.restored, opened.connection) == (True, number)
                assert (await again.next("frame")).frame.message.id == "m2"
                await again.accept(topic=5, opened=opened)
                await again.ack(number, "m2")
                assert (await hears(client))["id"] == "m2"
                await client.close()


async def test_a_link_to_a_router_that_lost_the_log_is_closed_though_the_router_keeps_it() -> None:
    # It is cut off from its database, and not from its edges.
    async with two_routers(owner=0) as routers, running_edge(at(routers)) as edge:
        link = await linked_to(edge, routers[0])
        await routers[0].report(False)
        assert not link.over.done()
        await routers[1].take_over()
        await linked_to(edge, routers[1])
        await asyncio.wait_for(link.over, PATIENCE_S)


async def test_of_several_routers_the_one_that_took_over_is_linked_to_first() -> None:
    async with two_routers(owner=0) as routers, running_router() as third:
        await third.lose()
        async with running_edge(at([*routers, third])) as edge:
            await linked_to(edge, routers[0])
            await routers[0].report(False)
            await third.take_over()
            await linked_to(edge, third)
            assert routers[1].attempts == 0


async def test_readiness_names_the_router_that_the_edge_is_linked_to() -> None:
    async with two_routers(owner=0) as routers, running_edge(at(routers)) as edge:
        await linked_to(edge, routers[0])
        async with httpx.AsyncClient(base_url=f"http://{edge.address}", trust_env=False) as http:
            assert (await http.get("/readyz")).json()["router"] == routers[0].address
            await routers[0].lose()
            await routers[1].take_over()
            await linked_to(edge, routers[1])
            assert (await http.get("/readyz")).json()["router"] == routers[1].address


async def test_a_suspended_owner_keeps_its_links_while_nobody_takes_over() -> None:
    async with two_routers(owner=0) as routers, running_edge(at(routers)) as edge:
        link = await routers[0].link()
        await routers[0].lose()
        await routers[1].report(True)
        await routers[1].report(False)
        await asyncio.sleep(0.1)
        await routers[0].take_over()
        client, _ = await accepted(edge, link)
        await client.close()
        assert not link.over.done()


async def test_an_owner_keeps_its_links_when_a_router_that_was_frozen_reports_that_it_owns_the_log() -> None:
    async with two_routers(owner=0) as routers, running_edge(at(routers)) as edge:
        link = await linked_to(edge, routers[0])
        await routers[1].report(True)
        await asyncio.sleep(0.2)
        client, _ = await accepted(edge, link)
        await client.close()
        assert (link.over.done(), routers[1].attempts) == (False, 0)


async def test_a_router_whose_link_is_silent_is_not_asked_whether_it_owns_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One that is frozen would not answer.
    monkeypatch.setattr(trunkline_edge.link.client, "LATE_SHARE", 0.001)
    async with two_routers(owner=0) as routers, running_edge(at(routers)) as edge:
        link = await linked_to(edge, routers[0])
        await routers[1].take_over()
        await linked_to(edge, routers[1])
        await asyncio.wait_for(link.over, PATIENCE_S)


async def test_an_attempt_at_a_router_that_answers_nothing_ends_when_another_one_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trunkline_edge.link.client, "WELCOME_TIMEOUT_S", patient(60))
    async with two_routers(owner=-1) as routers:
        routers[0].welcomes = routers[0].is_standby = False
        async with running_edge(at(routers)) as edge:
            await routers[0].link()
            await routers[1].take_over()
            await linked_to(edge, routers[1])
