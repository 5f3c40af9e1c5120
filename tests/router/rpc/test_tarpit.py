"""Refusals that are told late, and those that are not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_HISTORY
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.presence_service_pb2 import GetStatsRequest
from trunkline_router.active_call import ActiveCall
from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import REFUSALS_PER_S, Tarpit
from trunkline_router.rpc import status
from trunkline_router.rpc.call_queueing import wait_in_tarpit

from tests.router.rpc.call_pacing import Context, at_once, declared, said
from tests.router.rpc.guarded_router import (
    METHODS,
    OPERATOR,
    GuardedRouter,
    bearer,
    request_for,
)


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> list[Tarpit]:
    """Where refusals have rested, who do not wait for it."""
    rested: list[Tarpit] = []

    async def tarpit(where: Tarpit, size: int, context: Any) -> None:
        rested.append(where)

    monkeypatch.setattr(status, "wait_in_tarpit", tarpit)
    return rested


async def test_who_has_a_key_and_asks_for_more_holds_up_its_own_tenant(
    router: GuardedRouter, rested: list[Tarpit]
) -> None:
    _, key = await router.key("open", SCOPE_HISTORY)
    assert await router.code("Broadcast", said("open"), metadata=bearer(key)) == "FORBIDDEN"
    assert await router.code("GetStats", GetStatsRequest(tenant="all"), metadata=bearer(key)) == "FORBIDDEN"
    assert rested == [router.runtime.core.directory.tenants["open"].tarpit] * 2


async def test_whoever_is_refused_without_end_is_told_later_and_later(router: GuardedRouter) -> None:
    """So that refusing takes little of the router, whoever it is that is refused."""
    began, many = time.monotonic(), REFUSALS_PER_S + 30
    calls = [router.code("Broadcast", said("open"), metadata=bearer("wrong")) for _ in range(many)]
    assert set(await asyncio.gather(*calls)) == {"UNAUTHORIZED"}
    assert time.monotonic() - began >= 30 / REFUSALS_PER_S


def test_who_is_told_that_the_router_stops_is_told_so_at_once() -> None:
    strangers = Tarpit()
    call = ActiveCall(Caller(CallerKind.ANYBODY), strangers)
    assert call.tarpit_for(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is strangers
    assert call.tarpit_for(catalogue.ROUTER_UNAVAILABLE.refused()) is None
    by_edge = ActiveCall(Caller(CallerKind.EDGE), strangers)
    assert by_edge.tarpit_for(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is strangers


async def test_only_such_refusals_rest_as_nothing_else_holds_back(
    router: GuardedRouter, rested: list[Tarpit]
) -> None:
    few = router.runtime.core.directory.tenants[await declared(router, "few", calls_per_s=1)]
    assert (await at_once(router, "Broadcast", said("few")))["RATE_LIMITED"] == len(rested)
    assert set(rested) == {few.tarpit}
    rested.clear()
    assert await router.code("Broadcast", BroadcastRequest(address=Address(tenant="all"))) != "OK"
    assert (
        await router.code("DeleteTenant", request_for(METHODS["DeleteTenant"], ""), metadata=bearer(OPERATOR))
        == "INVALID_ARGUMENT"
    )
    assert not rested
    for tenant in ("unknown", "closed", ""):
        assert await router.code("Broadcast", said(tenant)) != "OK"
    assert len(rested) == 3
    assert few.tarpit not in rested


async def test_a_refusal_arrives_while_its_caller_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    tarpit = Tarpit()
    for _ in range(500):
        tarpit.enter(0, time.monotonic())
    await wait_in_tarpit(tarpit, 0, Context(1.0))  # type: ignore[arg-type]
    await wait_in_tarpit(tarpit, 0, Context(None))  # type: ignore[arg-type]
    assert slept == [pytest.approx(0.8), pytest.approx(5.01)]
