"""Refusals that are delayed, and those that are not."""

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

from tests.router.rpc.call_pacing import Context, at_once, broadcast_to, declared
from tests.router.rpc.in_process_router import (
    METHODS,
    OPERATOR,
    InProcessRouter,
    bearer,
    opening,
    request_for,
)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Tarpit]:
    """The tarpits that refusals entered, without the delay."""
    entered: list[Tarpit] = []

    async def tarpit(where: Tarpit, size: int, context: Any) -> None:
        entered.append(where)

    monkeypatch.setattr(status, "wait_in_tarpit", tarpit)
    return entered


async def test_a_key_without_permission_fills_the_tarpit_of_its_own_tenant(
    router: InProcessRouter, entered: list[Tarpit]
) -> None:
    _, key = await router.key("open", SCOPE_HISTORY)
    assert await router.code("Broadcast", broadcast_to("open"), metadata=bearer(key)) == "FORBIDDEN"
    assert await router.code("GetStats", GetStatsRequest(tenant="all"), metadata=bearer(key)) == "FORBIDDEN"
    assert entered == [router.runtime.core.directory.tenants["open"].tarpit] * 2


async def test_the_tarpit_counts_the_bytes_of_requests_but_not_of_streams(
    router: InProcessRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    async def tarpit(where: Tarpit, size: int, context: Any) -> None:
        sizes.append(size)

    monkeypatch.setattr(status, "wait_in_tarpit", tarpit)
    request = broadcast_to("closed")
    for rpc, message in (("Broadcast", request), ("Attach", opening("Attach", "closed"))):
        assert await router.code(rpc, message) not in ("OK", "INTERNAL")
    assert sizes == [request.ByteSize(), 0]


async def test_refusals_are_delayed_more_and_more(router: InProcessRouter) -> None:
    """Refusals take little of the router's time, whatever their cause."""
    began, many = time.monotonic(), REFUSALS_PER_S + 30
    calls = [router.code("Broadcast", broadcast_to("open"), metadata=bearer("wrong")) for _ in range(many)]
    assert set(await asyncio.gather(*calls)) == {"UNAUTHORIZED"}
    assert time.monotonic() - began >= 30 / REFUSALS_PER_S


def test_a_stopping_router_refuses_at_once() -> None:
    anonymous = Tarpit()
    call = ActiveCall(Caller(CallerKind.ANYBODY), anonymous)
    assert call.tarpit_for(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is anonymous
    assert call.tarpit_for(catalogue.ROUTER_UNAVAILABLE.refused()) is None
    by_edge = ActiveCall(Caller(CallerKind.EDGE), anonymous)
    assert by_edge.tarpit_for(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is anonymous


async def test_only_refusals_that_nothing_else_slows_down_are_delayed(
    router: InProcessRouter, entered: list[Tarpit]
) -> None:
    few = router.runtime.core.directory.tenants[await declared(router, "few", calls_per_s=1)]
    assert (await at_once(router, "Broadcast", broadcast_to("few")))["RATE_LIMITED"] == len(entered)
    assert set(entered) == {few.tarpit}
    entered.clear()
    assert await router.code("Broadcast", BroadcastRequest(address=Address(tenant="all"))) != "OK"
    assert (
        await router.code("DeleteTenant", request_for(METHODS["DeleteTenant"], ""), metadata=bearer(OPERATOR))
        == "INVALID_ARGUMENT"
    )
    assert not entered
    for tenant in ("unknown", "closed", ""):
        assert await router.code("Broadcast", broadcast_to(tenant)) != "OK"
    assert len(entered) == 3
    assert few.tarpit not in entered


async def test_a_refusal_arrives_within_the_callers_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
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
