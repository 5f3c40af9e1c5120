"""Worker on generated gRPC stubs that streams replies step by step."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio
from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    AttachResponse,
    Delivery,
    EndReply,
    OpenReply,
    ReplyDeltas,
    ReplyEnded,
    ReplyOpened,
    ReplyProgress,
    Settlement,
    SettlementResult,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, Delta, MessageState

from tests.e2e.polling import WAIT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

T = TypeVar("T")


class StreamingWorker:
    """`Attach` stream whose received items are kept in lists; `attach` opens a new one after a break."""

    def __init__(
        self,
        router: str,
        agent: str = "echo",
        ident: str = "producer",
        *,
        tenant: str = "demo",
        key: str = "",
    ) -> None:
        self._router = router
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._hello = AttachHello(
            tenant=tenant, agents=[agent], capacity=100, worker_id=ident, contract_minor=CONTRACT_MINOR
        )
        self._replies = 0
        self.broken = False
        self.deliveries: list[Delivery] = []
        self.opened: list[ReplyOpened] = []
        self.progress: list[ReplyProgress] = []
        self.ended: list[ReplyEnded] = []
        self.results: list[SettlementResult] = []
        self.cancelled: list[int] = []

    async def __aenter__(self) -> Self:
        await self.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.detach()

    async def attach(self) -> None:
        """Attach, retrying until that succeeds, and forget the items of earlier streams."""
        for kept in (self.deliveries, self.opened, self.progress, self.ended, self.results, self.cancelled):
            kept.clear()
        deadline = time.monotonic() + WAIT_S
        while True:
            if await self._attach():
                return
            assert time.monotonic() < deadline, f"could not attach to {self._router}"
            await asyncio.sleep(0.05)

    async def _attach(self) -> bool:
        self._channel = grpc.aio.insecure_channel(
            self._router, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )
        self._call: Any = AgentServiceStub(self._channel).Attach(metadata=self._metadata)
        try:
            await self._call.write(AttachRequest(hello=self._hello))
            welcome = await self._call.read()
        except grpc.aio.AioRpcError:
            await self._channel.close()
            return False
        assert welcome.HasField("welcome")
        self.broken = False
        self._take(welcome)
        self._reading = asyncio.create_task(self._read())
        return True

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._take(response)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self.broken = True

    def _take(self, response: AttachResponse) -> None:
        self.deliveries.extend(response.deliveries)
        self.opened.extend(response.opened)
        self.progress.extend(response.progress)
        self.ended.extend(response.ended)
        self.results.extend(response.results)
        self.cancelled.extend(response.cancelled)

    async def detach(self) -> None:
        """End the stream."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self._call.cancel()
        await self._channel.close()

    async def send(self, **batch: Any) -> None:
        """Send an AttachRequest."""
        await self._call.write(AttachRequest(**batch))

    async def wait_for_delivery(self, text: str) -> Delivery:
        """Wait for the delivery of a message with this text."""

        def find() -> Delivery | None:
            return _first(self.deliveries, lambda d: d.message.parts[0].text.text == text)

        await wait_until(find, f"{text!r} is delivered; there are {self.deliveries}")
        found = find()
        assert found is not None
        return found

    async def begin(self, text: str, *texts: str) -> tuple[Delivery, int]:
        """Open a reply to the message with this text and add texts; return the delivery and the number."""
        delivery = await self.wait_for_delivery(text)
        number, _ = await self.open(f"key-{delivery.delivery_id}", delivery_id=delivery.delivery_id)
        await self.add(number, 0, *texts)
        return delivery, number

    async def open(self, key: str, **target: Any) -> tuple[int, ReplyOpened]:
        """Open or take over a reply; return its number and the router's response."""
        self._replies += 1
        number = self._replies
        await self.send(opens=[OpenReply(reply=number, key=key, **target)])
        return number, await self._about(self.opened, number, f"{key} is opened")

    async def add(self, number: int, index: int, *texts: str) -> None:
        """Send deltas, numbered from `index`."""
        deltas = [Delta(index=index + n, text=text) for n, text in enumerate(texts)]
        await self.send(deltas=[ReplyDeltas(reply=number, deltas=deltas)])

    async def wait_durable(self, number: int, index: int) -> None:
        """Wait until all deltas before the index are on disk."""
        await wait_until(
            lambda: any(p.reply == number and p.durable_index >= index for p in self.progress),
            f"reply {number} is on disk up to {index}: {self.progress}",
        )

    async def end(
        self, number: int, count: int, state: MessageState.ValueType = MESSAGE_STATE_COMPLETE
    ) -> ReplyEnded:
        """End a reply of `count` deltas; return the router's response."""
        await self.send(ends=[EndReply(reply=number, state=state, next_index=count)])
        return await self._about(self.ended, number, "it ends")

    async def settle(self, delivery_id: int, **outcome: Any) -> None:
        """Settle a delivery."""
        await self.send(settlements=[Settlement(delivery_id=delivery_id, **outcome)])
        await wait_until(lambda: any(r.delivery_id == delivery_id for r in self.results), "it is settled")

    async def _about(self, kept: list[T], number: int, what: str) -> T:
        def find() -> T | None:
            return _first(kept, lambda each: getattr(each, "reply", 0) == number)

        await wait_until(lambda: find() or self.broken, what)
        found = find()
        assert found is not None, f"the stream broke before {what}"
        return found


def _first(items: list[T], condition: Callable[[T], bool]) -> T | None:
    return next((item for item in items if condition(item)), None)
