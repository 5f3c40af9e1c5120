"""BroadcastService: messages from backends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
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

from trunkline_router.core.commits.publishing import fill_response, response_of
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.router import RouterCore
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.rpc import client_calls, streams
from trunkline_router.rpc.open_message_rpcs import OpenMessageRpcs
from trunkline_router.rpc.pending_result import PendingResult
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import PeerStream

#: Results waiting for one caller of BroadcastMany beyond which its requests are not read.
MAX_WAITING_RESULTS = 20_000
#: Requests of a batch taken in one step, so that large batches delay nobody and are rate-limited evenly.
MAX_REQUESTS_PER_STEP = 512


class BroadcastServicer(OpenMessageRpcs, BroadcastServiceServicer):
    """Publishes messages of backends and returns the result of each."""

    @rpc_method
    async def Broadcast(  # noqa: N802
        self, request: BroadcastRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> BroadcastResponse:
        """See broadcast_service.proto."""
        if self._runtime.core.effects.commit_queue.is_full:
            raise catalogue.OVERLOADED.refused(problem="too many messages are waiting to be committed")
        broadcast = UnaryBroadcast()
        with self._runtime.step() as core:
            if (client := client_calls.calling_client()) is None:
                core.publishing.publish(request, broadcast)
            else:
                client_calls.publish(core, client, request, broadcast)
        response = await broadcast.result
        # Unary callers are held back by a full outbox like the streams.
        await self._runtime.wait_for_room(broadcast.blocked_by)
        return response

    @rpc_method
    async def BroadcastMany(  # noqa: N802
        self,
        request_iterator: AsyncIterator[BroadcastManyRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """See broadcast_service.proto."""
        broadcast = BroadcastStream()
        stream = broadcast.stream = self._runtime.open_stream(broadcast)
        try:
            writing = streams.write_batches(context, stream, broadcast.take, written=broadcast.written)
            await streams.run(stream, self._read(broadcast, context), writing)
        finally:
            self._runtime.close_stream(broadcast)

    async def _read(self, broadcast: BroadcastStream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        runtime = self._runtime
        while (batch := await context.read()) is not grpc.aio.EOF:
            requests = batch.requests
            bytes_per_request = broadcast.stream.call.request_bytes / max(1, len(requests))
            for items in slices(requests):
                with runtime.step() as core:
                    for item in items:
                        broadcast.accept(core, item.number, item.request)
                    tenants = [item.request.address.tenant for item in items]
                    wait_s = core.stream_limiter.charge_batch(tenants, bytes_per_request, time.monotonic())
                await runtime.wait_for_room(broadcast.blocked_by)
                # Sleeps 0 s at least: other tasks run between two steps.
                await asyncio.sleep(wait_s)
                await broadcast.wait_for_room()
        await broadcast.wait_until_answered()


def slices(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Split a batch into slices of at most MAX_REQUESTS_PER_STEP requests, in order, without copying them."""
    for start in range(0, len(requests), MAX_REQUESTS_PER_STEP):
        yield requests[start : start + MAX_REQUESTS_PER_STEP]


class UnaryBroadcast(PendingResult[BroadcastResponse]):
    """Commit listener of one unary Broadcast."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        super().__init__()
        self.blocked_by: set[Link] = set()

    def committed(self, pending: PendingEntry) -> None:
        """Return the position of the message."""
        self.resolve(response_of(pending))

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Return the refusal."""
        self.reject(reason)


class BroadcastStream:
    """One BroadcastMany: the results waiting for its caller, and the number of requests without one."""

    connection: ConnectedClient | None = None

    stream: PeerStream

    def __init__(self) -> None:
        self.outbox = BroadcastManyResponse()
        self.unanswered = 0
        self.blocked_by: set[Link] = set()
        self._written = asyncio.Event()

    def accept(self, core: RouterCore, number: int, request: BroadcastRequest) -> None:
        """Publish one request; its result, also a refusal, follows in the outbox. Called within a step."""
        self.unanswered += 1
        item = BatchItem(self, number)
        try:
            core.publishing.publish(request, item)
        except Refused as reason:
            if tenant := core.directory.tenants.get(request.address.tenant):
                tenant.refused[reason.entry.code] += 1
            item.reject(reason)

    def take(self) -> BroadcastManyResponse | None:
        """Take all waiting results, or None."""
        if not self.outbox.results:
            return None
        batch, self.outbox = self.outbox, BroadcastManyResponse()
        return batch

    def written(self) -> None:
        """Note that the batch taken last was written."""
        self._written.set()

    async def wait_for_room(self) -> None:
        """Wait until most results have been written."""
        while len(self.outbox.results) > MAX_WAITING_RESULTS:
            self._written.clear()
            await self._written.wait()

    async def wait_until_answered(self) -> None:
        """Wait until the result of every request has been written."""
        while self.unanswered or self.outbox.results or self.stream.is_writing:
            self._written.clear()
            await self._written.wait()


class BatchItem:
    """Commit listener of one request of a BroadcastMany."""

    __slots__ = ("_broadcast", "_number")

    connection: ConnectedClient | None = None

    def __init__(self, broadcast: BroadcastStream, number: int) -> None:
        self._broadcast = broadcast
        self._number = number

    @property
    def blocked_by(self) -> set[Link]:
        """Shared by all requests of the stream."""
        return self._broadcast.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """Add the response to the outbox."""
        response = self._add_result().response
        # Marks the response as set even if all of its fields are default values.
        response.SetInParent()
        fill_response(response, pending)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Add the refusal to the outbox."""
        self.reject(reason)

    def reject(self, reason: Refused) -> None:
        """Add a refusal to the outbox."""
        self._add_result().error.CopyFrom(to_error(reason))

    def _add_result(self) -> Any:
        broadcast = self._broadcast
        broadcast.unanswered -= 1
        broadcast.stream.wake.set()
        return broadcast.outbox.results.add(number=self._number)
