"""BroadcastService: backends that say something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastManyResponse,
    BroadcastRequest,
    BroadcastResponse,
)
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceServicer
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import to_error

from trunkline_router.core.commits.publishing import response_of
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.rpc import streams
from trunkline_router.rpc.open_message_rpcs import OpenMessageRpcs
from trunkline_router.rpc.status import answers
from trunkline_router.runtime import AttachedStream, RouterRuntime

#: Results that may wait for one caller of BroadcastMany before its requests are read no further.
MAX_WAITING_RESULTS = 20_000
#: Of a batch, so many are taken in one go: a sender of large ones delays nobody, and is paced evenly.
MOST_AT_ONCE = 512


class BroadcastServicer(OpenMessageRpcs, BroadcastServiceServicer):
    """Takes messages from backends and tells them what became of each."""

    @answers
    async def Broadcast(  # noqa: N802
        self, request: BroadcastRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> BroadcastResponse:
        """See broadcast_service.proto."""
        if self._shell.core.commit_queue.is_full:
            raise catalogue.OVERLOADED.refused(problem="messages wait to be stored")
        once = UnaryBroadcast()
        self._shell.core.publishing.take(request, once)
        self._shell.settle()
        response = await once.answer
        # A caller of many of these is held back like any other that fills an edge's outbox.
        await self._shell.room(once.blocked_by)
        return response

    @answers
    async def BroadcastMany(  # noqa: N802
        self,
        request_iterator: AsyncIterator[BroadcastManyRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """See broadcast_service.proto."""
        many = BroadcastStream()
        stream = many.stream = self._shell.opened(many)
        try:
            writing = streams.write_batches(context, stream, many.take, written=many.written)
            await streams.run(stream, self._read(many, context), writing)
        finally:
            del self._shell.streams[many]

    async def _read(self, many: BroadcastStream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        shell = self._shell
        while (batch := await context.read()) is not grpc.aio.EOF:
            for piece in pieces(batch):
                for item in piece.requests:
                    many.take_on(shell, item.number, item.request)
                wait_s = shell.core.pacing.charge_batch(piece, time.monotonic())
                shell.settle()
                await shell.room(many.blocked_by)
                # Also where it may go on: others have their turn.
                await asyncio.sleep(wait_s)
                await many.room()
        await many.all_told()


def pieces(batch: BroadcastManyRequest) -> Iterator[BroadcastManyRequest]:
    """The batch in pieces of at most MOST_AT_ONCE, in order."""
    if len(batch.requests) <= MOST_AT_ONCE:
        yield batch
        return
    for start in range(0, len(batch.requests), MOST_AT_ONCE):
        yield BroadcastManyRequest(requests=batch.requests[start : start + MOST_AT_ONCE])


class UnaryBroadcast:
    """Origin of one unary Broadcast; `answer` is its outcome."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        self.blocked_by: set[Link] = set()
        self.answer: asyncio.Future[BroadcastResponse] = asyncio.get_running_loop().create_future()

    def committed(self, pending: PendingEntry) -> None:
        """Answer OK, unless the caller is gone."""
        if not self.answer.done():
            self.answer.set_result(response_of(pending))

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Answer with the refusal, unless the caller is gone."""
        if not self.answer.done():
            self.answer.set_exception(reason)


class BroadcastStream:
    """One BroadcastMany: the results that wait for its caller, and what it still waits for."""

    connection: ConnectedClient | None = None

    stream: AttachedStream

    def __init__(self) -> None:
        self.outbox = BroadcastManyResponse()
        self.unanswered = 0
        self.blocked_by: set[Link] = set()
        self._told = asyncio.Event()

    def take_on(self, shell: RouterRuntime, number: int, request: BroadcastRequest) -> None:
        """Take one request; its result follows in the outbox, whatever it is."""
        self.unanswered += 1
        listener = BatchItem(self, number)
        try:
            shell.core.publishing.take(request, listener)
        except Refused as reason:
            if tenant := shell.core.directory.tenants.get(request.address.tenant):
                tenant.refused[reason.entry.code] += 1
            listener.refuse(reason)

    def take(self) -> BroadcastManyResponse | None:
        """The results there are, or None."""
        if not self.outbox.results:
            return None
        batch, self.outbox = self.outbox, BroadcastManyResponse()
        return batch

    def written(self) -> None:
        """The results taken last are written."""
        self._told.set()

    async def room(self) -> None:
        """Wait until the caller has been written most of its results."""
        while len(self.outbox.results) > MAX_WAITING_RESULTS:
            self._told.clear()
            await self._told.wait()

    async def all_told(self) -> None:
        """Wait until the caller has been written the result of all it sent."""
        while self.unanswered or self.outbox.results or self.stream.is_writing:
            self._told.clear()
            await self._told.wait()


class BatchItem:
    """Origin of one request of a BroadcastMany."""

    __slots__ = ("_many", "_number")

    connection: ConnectedClient | None = None

    def __init__(self, many: BroadcastStream, number: int) -> None:
        self._many = many
        self._number = number

    @property
    def blocked_by(self) -> set[Link]:
        """All requests of one stream are held back together."""
        return self._many.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """Put an OK into the outbox."""
        self._answered().response.CopyFrom(response_of(pending))

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Put the refusal into the outbox."""
        self.refuse(reason)

    def refuse(self, reason: Refused) -> None:
        """Put the refusal into the outbox."""
        self._answered().error.CopyFrom(to_error(reason))

    def _answered(self) -> Any:
        many = self._many
        many.unanswered -= 1
        many.stream.wake.set()
        return many.outbox.results.add(number=self._number)
