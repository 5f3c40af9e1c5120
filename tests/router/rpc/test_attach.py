"""Attaching a worker, up to its first delivery."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from trunkline.v1.message_pb2 import ROLE_USER, Message
from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.topics import PERSON, TopicKey, address_of
from trunkline_router.rpc.agent_service import AgentServicer

from tests.router.rpc.call_pacing import until
from tests.router.rpc.in_process_router import InProcessRouter, opening

ALICE: TopicKey = ("open", "a", "web", PERSON, "alice")


class GonePeer:
    """A worker that sent its hello and broke the connection, once its deliveries were read from the log."""

    def __init__(self, router: InProcessRouter) -> None:
        self._router = router
        self._hello = [opening("Attach", "open")]

    async def read(self) -> Any:
        return self._hello.pop() if self._hello else await asyncio.Event().wait()

    async def write(self, message: Any) -> None:
        queue = self._router.runtime.core.agent_queues.get("open", "a")
        assert queue is not None
        await until(lambda: queue.is_complete)
        raise grpc.aio.UsageError("the peer is gone")

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


class EndedPeer(GonePeer):
    """A worker whose stream the router ends while it writes the welcome."""

    async def write(self, message: Any) -> None:
        with pytest.raises(grpc.aio.UsageError):
            await super().write(message)
        self._router.runtime.end_streams()

    async def abort(self, code: Any, details: str, metadata: Any) -> None:
        raise grpc.aio.UsageError(details)


@pytest.mark.parametrize("peer", [GonePeer, EndedPeer])
async def test_a_worker_that_is_gone_before_its_welcome_uses_up_no_attempt(
    router: InProcessRouter, peer: type[GonePeer]
) -> None:
    entry = PendingEntry(ALICE, Message(address=address_of(ALICE)), deliver=True)
    entry.message.author.role = ROLE_USER
    await router.runtime.log.append(Transaction(entries=[entry]))
    servicer: Any = AgentServicer(router.runtime, "r", AuditTrail(router.runtime.log))
    for _ in range(2):
        with pytest.raises(grpc.aio.UsageError):
            await servicer.Attach(None, peer(router))
    await router.runtime.flush()
    [delivery] = await router.runtime.log.deliveries("open", "a", 0, 9)
    assert delivery.attempts == 0
    assert not router.runtime.streams
