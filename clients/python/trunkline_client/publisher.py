"""A pipeline of broadcasts over one stream after another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastManyResponse,
    BroadcastRequest,
    BroadcastResponse,
)
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub

from trunkline_client.backoff import Backoff
from trunkline_client.bidi_stream import BidiStream
from trunkline_client.channel import error_from_entry, error_from_rpc
from trunkline_client.clock import Clock
from trunkline_client.errors import Disconnected, QueueFull, Refused, TrunklineError
from trunkline_client.publish_queue import MAX_BATCH_BYTES, PublishQueue

log = logging.getLogger("trunkline_client")


class Publisher:
    """Broadcasts without waiting for one answer before the next request.

    `publish` and `send` return a ticket: a future of the BroadcastResponse, which raises Refused where
    the router refuses. When the stream breaks, requests with an idempotency key are sent again on the
    next one; those without fail with Disconnected if they had been written, as they may or may not have
    been taken. RequestSender to one address are committed in the order in which they were given.
    `Backend.publisher` makes one.
    """

    def __init__(self, stub: BroadcastServiceStub, clock: Clock, *, max_unanswered: int) -> None:
        self._stub = stub
        self._clock = clock
        self._pipeline = PublishQueue(max_unanswered)
        self._tickets: dict[int, asyncio.Future[BroadcastResponse]] = {}
        self._has_mail = asyncio.Event()
        #: Set when requests have left the pipeline.
        self._eased = asyncio.Event()
        self._end: TrunklineError | None = None
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Publisher {self._pipeline!r}>"

    def publish(self, request: BroadcastRequest) -> asyncio.Future[BroadcastResponse]:
        """Queues a request without waiting. Raises QueueFull where `max_unanswered` are on their way.

        Raises Refused at once for a request that is too large for the contract. Nobody has to await the
        ticket; an error that nobody looks at is not reported.
        """
        if self._end is not None:
            raise self._end
        if self._pipeline.is_full:
            raise QueueFull(f"{len(self._pipeline)} requests wait for their answers")
        if request.ByteSize() > MAX_BATCH_BYTES:
            problem = f"has {request.ByteSize()} bytes; at most {MAX_BATCH_BYTES} are allowed"
            sentence = catalogue.INVALID_ARGUMENT.sentence(field="BroadcastRequest", problem=problem)
            raise Refused("INVALID_ARGUMENT", sentence)
        ticket: asyncio.Future[BroadcastResponse] = asyncio.get_running_loop().create_future()
        self._tickets[self._pipeline.add(request)] = ticket
        self._has_mail.set()
        return ticket

    async def send(self, request: BroadcastRequest) -> asyncio.Future[BroadcastResponse]:
        """Queues a request, once there is room; returns its ticket. A cancel while waiting queues nothing."""
        await self._until(lambda: not self._pipeline.is_full)
        return self.publish(request)

    async def drain(self) -> None:
        """Waits until every request has its answer. Bound it with `asyncio.timeout` where that matters."""
        await self._until(lambda: not len(self._pipeline))

    async def _until(self, eased: Callable[[], bool]) -> None:
        while self._end is None and not eased():
            self._eased.clear()
            await self._eased.wait()

    # Life; for Backend.

    def start(self) -> None:
        """Begins to send."""
        self._running = asyncio.create_task(self._run(), name="publish")

    async def stop(self) -> None:
        """Ends at once; tickets without an answer fail with Disconnected. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            if not self._running.cancelled():
                self._running.result()

    async def _run(self) -> None:
        backoff = Backoff(self._clock.random)
        try:
            while True:
                refusal = await self._stream(backoff)
                self._fail_lost()
                if not refusal.retryable:
                    self._fail_all(refusal)
                    return
                await self._clock.sleep(backoff.next_s(refusal.retry_after_ms / 1000))
        finally:
            self._fail_all(Disconnected("The publisher was closed"))

    async def _stream(self, backoff: Backoff) -> Refused:
        """Writes and reads on one stream until it breaks; returns why."""
        call = self._stub.BroadcastMany()
        stream = BidiStream(call, self._write)
        try:
            async for response in stream:
                backoff.reset()
                self._take(response)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        finally:
            await stream.close()
        return Refused("UNAVAILABLE", "the router ended the stream", retryable=True)

    async def _write(self, write: Callable[[BroadcastManyRequest], Awaitable[None]]) -> None:
        """The only writer: each batch is all that was queued while the last one was written."""
        while True:
            while self._pipeline.has_unwritten:
                await write(self._pipeline.next_batch())
            self._has_mail.clear()
            await self._has_mail.wait()

    def _take(self, response: BroadcastManyResponse) -> None:
        for result in response.results:
            if not self._pipeline.answered(result.number):
                continue
            ticket = self._tickets.pop(result.number)
            if result.HasField("error"):
                _fail(ticket, error_from_entry(result.error))
            elif not ticket.done():
                ticket.set_result(result.response)
        self._eased.set()

    def _fail_lost(self) -> None:
        gone = self._pipeline.stream_lost()
        for number in gone:
            _fail(
                self._tickets.pop(number),
                Disconnected("The stream broke; without an idempotency key this is not sent again"),
            )
        if gone:
            log.warning("the stream broke with %d requests unanswered that cannot be sent again", len(gone))
            self._eased.set()

    def _fail_all(self, error: TrunklineError) -> None:
        self._end = self._end or error
        self._pipeline.clear()
        for ticket in self._tickets.values():
            _fail(ticket, self._end)
        self._tickets.clear()
        self._eased.set()


def _fail(ticket: asyncio.Future[BroadcastResponse], error: TrunklineError) -> None:
    if not ticket.done():
        ticket.set_exception(error)
        ticket.exception()  # looked at: thousands of tickets that nobody awaits must not log a line each
