"""A program with nothing but stubs and gRPC follows the owner, as protos/README.md shows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub

from tests.clients.scripted_router import ScriptedRouter, scripted_router
from tests.support.patience import patient
from tests.support.processes import ROOT

PATIENCE_S = patient(10)


def documented_config() -> str:
    """The service config of the page."""
    page = (ROOT / "protos" / "README.md").read_text()
    found = re.search(r"```json service config\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def answering(router: ScriptedRouter) -> Callable[[Any], BroadcastResponse]:
    return lambda _: BroadcastResponse(message_id=router.address)


async def refused(stub: BroadcastServiceStub) -> grpc.StatusCode:
    """Make calls until one fails; return its status."""
    while True:
        try:
            await stub.Broadcast(BroadcastRequest(), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return error.code()


async def report(router: ScriptedRouter, serves: bool) -> None:
    status = HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
    await router.health.set("trunkline.v1.BroadcastService", status)


async def test_calls_go_to_the_router_that_serves_and_wait_for_one_if_they_are_asked_to() -> None:
    async with scripted_router() as first, scripted_router() as second, asyncio.timeout(patient(30)):
        for router in (first, second):
            router.answers["Broadcast"] = answering(router)
        await report(first, False)
        await report(second, True)
        options = [("grpc.service_config", documented_config()), ("grpc.enable_http_proxy", 0)]
        target = f"ipv4:{first.address},{second.address}"
        async with grpc.aio.insecure_channel(target, options) as channel:
            stub = BroadcastServiceStub(channel)
            for _ in range(4):
                answer = await stub.Broadcast(BroadcastRequest(), timeout=PATIENCE_S, wait_for_ready=True)
                assert answer.message_id == second.address
            await report(second, False)
            assert await refused(stub) is grpc.StatusCode.UNAVAILABLE
            waiting = asyncio.ensure_future(
                stub.Broadcast(BroadcastRequest(), timeout=PATIENCE_S, wait_for_ready=True)
            )
            await report(first, True)
            assert (await waiting).message_id == first.address
