"""A raw `Attach` stream of the benchmark's tenant."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import grpc
from trunkline.v1 import agent_service_pb2, catalogue
from trunkline.v1.agent_service_pb2 import AttachRequest, AttachResponse
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub

AGENT = "bench"


class AttachStream(ABC):
    """Stream of one worker, which is read from construction on."""

    def __init__(self, stub: AgentServiceStub) -> None:
        self._call: grpc.aio.StreamStreamCall[AttachRequest, AttachResponse] = stub.Attach()
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def hello(self, capacity: int) -> None:
        """Send the first frame."""
        hello = agent_service_pb2.AttachHello(
            tenant="demo", agents=[AGENT], capacity=capacity, contract_minor=catalogue.CONTRACT_MINOR
        )
        await self.write(AttachRequest(hello=hello))

    async def write(self, batch: AttachRequest) -> None:
        """Write a batch."""
        await self._call.write(batch)

    async def _until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Wait for a condition; return silently on timeout, as callers count what is missing."""
        deadline = time.monotonic() + within_s
        while not condition() and not self._reading.done() and time.monotonic() < deadline:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), 1.0)
            except TimeoutError:
                continue

    async def _read(self) -> None:
        async for batch in self._call:
            await self._received(batch)
            self._changed.set()

    @abstractmethod
    async def _received(self, batch: AttachResponse) -> None:
        """Take a batch from the router."""
