"""A pipeline of broadcasts over one stream after another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastManyResponse,
    BroadcastRequest,
    BroadcastResponse,
)

from trunkline_client.backoff import Backoff
from trunkline_client.bidi_stream import BidiStream
from trunkline_client.clock import Clock
from trunkline_client.errors import (
    OutcomeUnknown,
    QueueFull,
    Refused,
    TransportError,
    TrunklineError,
    Unreachable,
)
from trunkline_client.publish_queue import MAX_BATCH_BYTES, PublishQueue
from trunkline_client.router_choice import StreamRetries, is_refusal_of_standby
from trunkline_client.router_connection import RouterConnection
from trunkline_client.rpc_errors import error_from_message, error_from_rpc
from trunkline_client.takeover_watch import MOVED

_LOST = "The stream broke before the router answered; without an idempotency key nothing is sent again"

log = logging.getLogger("trunkline_client")


class Publisher:
    """Broadcasts without waiting for one answer before the next request; `Backend.publisher` makes one.

        async with backend.publisher() as publisher:
            for request in requests:
                ticket = await publisher.send(request)

    `publish` and `send` return a ticket: a future of the BroadcastResponse. Requests to one address are
    committed in the order in which they were given. When the stream breaks, the publisher opens another one
    and sends unanswered requests with an idempotency key again. A ticket raises

    - Refused if the router rejected its request,
    - OutcomeUnknown if the request was written but cannot be sent again: it has no idempotency key, or the
      router ended the stream for good, or the publisher was closed first,
    - Unreachable if the request was never written.

    Leaving the block waits for every answer. Leaving it by an exception or a cancel fails the unanswered
    tickets at once. Tickets need not be awaited; an error that is never read is not logged.
    """

    def __init__(self, connection: RouterConnection, clock: Clock, *, max_unanswered: int) -> None:
        self._connection = connection
        self._clock = clock
        self._queue = PublishQueue(max_unanswered)
        self._tickets: dict[int, asyncio.Future[BroadcastResponse]] = {}
        #: The stream was answered, so it was not refused.
        self._has_answer = False
        self._has_unwritten = asyncio.Event()
        #: Set when requests have left the queue.
        self._has_room = asyncio.Event()
        #: Raised by requests after the publisher has ended.
        self._end: Refused | TransportError | None = None
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Publisher {self._queue!r}>"

    def publish(self, request: BroadcastRequest) -> asyncio.Future[BroadcastResponse]:
        """Queues a request without waiting.

        Args:
            request: The broadcast; see `broadcast_request`.

        Returns:
            The request's ticket.

        Raises:
            QueueFull: `max_unanswered` requests are unanswered.
            Refused: The request is larger than 1 MiB, or the router has ended the stream for good.
            Unreachable: The publisher is closed, or the stream ended for good.
            RuntimeError: The publisher is not entered.
        """
        self._require_open()
        if self._queue.is_full:
            raise QueueFull(f"{len(self._queue)} requests are unanswered")
        if request.ByteSize() > MAX_BATCH_BYTES:
            problem = f"has {request.ByteSize()} bytes; at most {MAX_BATCH_BYTES} are allowed"
            sentence = catalogue.INVALID_ARGUMENT.sentence(field="BroadcastRequest", problem=problem)
            raise Refused(catalogue.INVALID_ARGUMENT.code, sentence)
        ticket: asyncio.Future[BroadcastResponse] = asyncio.get_running_loop().create_future()
        self._tickets[self._queue.add(request)] = ticket
        self._has_unwritten.set()
        return ticket

    async def send(self, request: BroadcastRequest) -> asyncio.Future[BroadcastResponse]:
        """Queues a request once there is room. A cancel while waiting queues nothing.

        Args:
            request: The broadcast; see `broadcast_request`.

        Returns:
            The request's ticket.

        Raises:
            Refused, Unreachable, RuntimeError: As for `publish`.
        """
        await self._wait_until(lambda: not self._queue.is_full)
        return self.publish(request)

    async def drain(self) -> None:
        """Waits until every request has its answer; bound it with `asyncio.timeout` if that matters.

        Raises:
            RuntimeError: The publisher is not entered.
        """
        await self._wait_until(lambda: not len(self._queue))

    def _require_open(self) -> None:
        if self._running is None:
            message = "The publisher is not open: write `async with backend.publisher() as publisher:`"
            raise RuntimeError(message)
        if self._end is not None:
            raise self._end

    async def _wait_until(self, ready: Callable[[], bool]) -> None:
        if self._running is None:
            self._require_open()
        while self._end is None and not ready():
            self._has_room.clear()
            await self._has_room.wait()

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise RuntimeError("A publisher is entered once: make another one with `backend.publisher()`")
        self._running = asyncio.create_task(self._run(), name="publish")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        try:
            if error is None:
                await self.drain()
        finally:
            self._running.cancel()
            await asyncio.wait({self._running})
            # A task that is cancelled before its first step runs nothing of itself.
            self._end_with(self._closed())
            if not self._running.cancelled():
                self._running.result()

    async def _run(self) -> None:
        routers = self._connection.routers
        retries = StreamRetries(routers, Backoff(self._clock.random))
        try:
            while True:
                router = routers.current
                self._has_answer = False
                error = await self._serve_stream(router, retries)
                if is_refusal_of_standby(error) and not self._has_answer:
                    self._queue.stream_refused()
                else:
                    self._fail_lost()
                wait_s = None if self._connection.is_closed else retries.wait_s(router, error)
                if wait_s is None:
                    self._end_with(error)
                    return
                await self._clock.sleep(wait_s)
        finally:
            self._end_with(self._closed())

    def _closed(self) -> Unreachable:
        return Unreachable(str(self._connection.routers), "the publisher was closed")

    async def _serve_stream(self, router: str, retries: StreamRetries) -> Refused | TransportError:
        """Writes and reads on one stream to the current router until it breaks; returns the reason."""
        try:
            call = self._connection.broadcast.BroadcastMany()
        except grpc.aio.UsageError:
            return Unreachable(router, "the backend was closed")
        moved = partial(self._connection.takeovers(self._clock).wait_until_moved, router)
        stream = BidiStream(call, self._write, moved)
        try:
            async for response in stream:
                retries.succeeded()
                self._has_answer = True
                self._receive(response)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error, router, may_have_effect=False)
        finally:
            await stream.close()
        return Unreachable(router, MOVED if stream.was_left else "the router ended the stream")

    async def _write(self, write: Callable[[BroadcastManyRequest], Awaitable[None]]) -> None:
        """Writes batches; each takes what was queued while the last one was written."""
        while True:
            while self._queue.has_unwritten:
                await write(self._queue.next_batch())
            self._has_unwritten.clear()
            await self._has_unwritten.wait()

    def _receive(self, response: BroadcastManyResponse) -> None:
        for result in response.results:
            if not self._queue.record_answer(result.number):
                continue
            ticket = self._tickets.pop(result.number)
            if result.HasField("error"):
                _fail(ticket, error_from_message(result.error, may_have_effect=True))
            elif not ticket.done():
                ticket.set_result(result.response)
        self._has_room.set()

    def _fail_lost(self) -> None:
        lost = self._queue.stream_lost()
        for number in lost:
            _fail(self._tickets.pop(number), OutcomeUnknown(_LOST))
        if lost:
            log.warning("the stream broke with %d unanswered requests that cannot be sent again", len(lost))
            self._has_room.set()

    def _end_with(self, end: Refused | TransportError) -> None:
        """Fails all tickets, and the requests to come; only the first call counts."""
        if self._end is not None:
            return
        self._end = end
        for number, ticket in self._tickets.items():
            if self._queue.may_be_committed(number):
                unknown = OutcomeUnknown(
                    f"The stream ended before the router answered: {end}", retryable=end.retryable
                )
                unknown.__cause__ = end
                _fail(ticket, unknown)
            else:
                _fail(ticket, end)
        self._queue.clear()
        self._tickets.clear()
        self._has_room.set()


def _fail(ticket: asyncio.Future[BroadcastResponse], error: TrunklineError) -> None:
    if not ticket.done():
        ticket.set_exception(error)
        ticket.exception()  # marks it as read, so that tickets that are not awaited do not log a line each
