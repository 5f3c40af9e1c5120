"""A router that sleeps past its ownership lease changes nothing when it wakes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import ExitStack

import grpc
import pytest
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_OPEN

from tests.e2e.grpc_backend import text_of
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.e2e.postgres.router_faults import owner_of
from tests.e2e.postgres.standby_fleet import StandbyFleet
from tests.e2e.recording_client import RecordingClient
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.processes import linux
from tests.validators.history import History

pytestmark = [linux, pytest.mark.long]

GROUP = "demo/echo/web/group:calls"

#: Calls that change the log.
CALLS: dict[str, Callable[[OperatorClient], object]] = {
    "CreateTenant": lambda operator: operator.create("ghost"),
    "SuspendTenant": lambda operator: operator.suspend("demo"),
    "DeleteTenant": lambda operator: operator.delete("demo"),
    "CreateApiKey": lambda operator: operator.api_key("demo"),
    "EraseUser": lambda operator: operator.erase_user("demo", "user0"),
    "ResetConversation": lambda operator: operator.reset(GROUP),
    "Broadcast": lambda operator: operator.broadcast(GROUP, "late"),
}


async def test_calls_that_reach_a_router_in_its_sleep_change_nothing(fleet: StandbyFleet) -> None:
    owner = await owner_of(fleet)
    with ExitStack() as stack:
        operators = {
            name: stack.enter_context(OperatorClient(owner.address, fleet.operator_key)) for name in CALLS
        }
        operators["Broadcast"].broadcast(GROUP, "kept", "key")
        for operator in operators.values():
            # Connected before the router sleeps.
            operator.stats()
        owner.signal(signal.SIGSTOP)
        calls = [
            asyncio.create_task(asyncio.to_thread(call, operators[name])) for name, call in CALLS.items()
        ]
        try:
            successor = await asyncio.to_thread(lambda: fleet.await_owner(but=owner))
        finally:
            owner.signal(signal.SIGCONT)
        results = dict(zip(CALLS, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    for name, result in results.items():
        assert isinstance(result, grpc.RpcError), f"{name}: {result!r}"
        assert result.code() is grpc.StatusCode.UNAVAILABLE, f"{name}: {result!r}"
    with OperatorClient(successor.address, fleet.operator_key) as operator:
        assert [text_of(message) for message in operator.messages(GROUP)] == ["kept"]
        # The tenant is neither suspended nor deleted, and there is no other.
        operator.broadcast(GROUP, "goes on")
        with pytest.raises(grpc.RpcError) as unknown:
            operator.update("ghost", default_agent="echo")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def outlast_reply_lease(fleet: StandbyFleet, worker: StreamingWorker) -> None:
    """Let more than the lease of replies pass, in which the worker reports that it lives."""
    for _ in range(6):
        await asyncio.sleep(fleet.reply_lease_s / 4)
        await worker.send()


async def test_a_router_ends_no_reply_of_another_one(fleet: StandbyFleet) -> None:
    """Neither the standby, which never had the worker, nor the former owner, whose worker has gone."""
    owner = await owner_of(fleet)
    async with RecordingClient(
        History(), "demo/eve", fleet.edges[0].address, "person:eve", agent="slow"
    ) as eve:
        await eve.say("question")
        async with StreamingWorker(owner.address, "slow") as worker:
            _, number = await worker.begin("question", "one ")
            await worker.wait_durable(number, 1)
            await outlast_reply_lease(fleet, worker)
            owner.signal(signal.SIGSTOP)
            try:
                successor = await asyncio.to_thread(lambda: fleet.await_owner(but=owner))
            finally:
                owner.signal(signal.SIGCONT)
        async with StreamingWorker(successor.address, "slow") as worker:
            delivery = await worker.wait_for_delivery("question")
            number, opened = await worker.open(
                f"key-{delivery.delivery_id}", delivery_id=delivery.delivery_id
            )
            assert opened.message.state == MESSAGE_STATE_OPEN
            await outlast_reply_lease(fleet, worker)
            await worker.add(number, 1, "two")
            assert (await worker.end(number, 2)).state == MESSAGE_STATE_COMPLETE
            await worker.settle(delivery.delivery_id)
        await wait_until(lambda: "complete" in eve.texts.replies().values(), f"{eve.texts.replies()}")
        (ident,) = eve.texts.replies()
        assert eve.texts.text[ident] == "one two"
