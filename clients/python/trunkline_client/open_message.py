"""A backend's message while it is said piece by piece, by one unary call after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import grpc.aio
from trunkline.v1.broadcast_service_pb2 import (
    EndMessageRequest,
    ExtendMessageRequest,
    OpenMessageRequest,
)
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    Message,
    MessageState,
)

from trunkline_client.backoff import Backoff
from trunkline_client.channel import error_from_rpc
from trunkline_client.clock import Clock
from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import (
    AlreadyAnswered,
    Disconnected,
    Fenced,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TrunklineError,
)
from trunkline_client.message_writer import MessageWriter, OnCancel, error_of

T = TypeVar("T")

#: The contract's bounds of one call, with room for what is around the deltas.
_MAX_CALL_BYTES = 512 << 10
_MAX_CALL_DELTAS = 1024
#: For a router that does not tell its lease.
_DEFAULT_LEASE_S = 15


class OpenMessage(MessageWriter):
    """A message while it is said; `Backend.open_message` makes one. See `MessageWriter`.

    What is written while one call runs goes with the next; while nothing is written, calls without
    anything keep the message's lease. Where the router cannot be reached the calls are made again, for
    as long as the block lasts, so bound it with `asyncio.timeout` where that matters. Entering does not
    try again. It raises AlreadyAnswered where the message of this key has ended.
    """

    def __init__(
        self,
        stub: BroadcastServiceStub,
        request: OpenMessageRequest,
        clock: Clock,
        timeout_s: float,
        on_cancel: OnCancel | None,
    ) -> None:
        super().__init__(on_cancel)
        self._stub = stub
        self._request = request
        self._clock = clock
        self._timeout_s = timeout_s
        self._backoff = Backoff(clock.random)
        self._deltas = DeltaBuffer()
        self._over: TrunklineError | None = None
        #: Why nothing more can be added, though it can still be ended.
        self._refusal: Refused | None = None
        self._epoch = 0
        #: How often something is to be said.
        self._renew_s = 0.0
        self._has_mail = asyncio.Event()
        #: The end to be written after the deltas.
        self._ending: EndMessageRequest | None = None
        self._ended = False
        self._pumping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<OpenMessage {self.id} {self._deltas!r}>"

    @property
    def _outgoing(self) -> DeltaBuffer:
        return self._deltas

    @property
    def _failure(self) -> TrunklineError | None:
        return self._over

    def _stir(self) -> None:
        self._has_mail.set()

    async def _open(self) -> Message:
        try:
            answer = await self._stub.OpenMessage(self._request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        if answer.message.state != MESSAGE_STATE_OPEN:
            raise AlreadyAnswered(answer.message)
        self._epoch = answer.epoch
        self._renew_s = (answer.lease_s or _DEFAULT_LEASE_S) / 3
        self._deltas.begin(answer.message.next_index)
        self._pumping = asyncio.create_task(self._pump(answer.message.id), name="extend a message")
        return answer.message

    async def _end(self, state: MessageState.ValueType, error: Error | None) -> None:
        self._end_soon(state, error)
        await self._until(lambda: self._ended)
        if self._refusal is not None and state == MESSAGE_STATE_COMPLETE:
            raise self._refusal  # of what was written last, after the block had asked for its end

    def _end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        if self._ending is None:
            self._ending = EndMessageRequest(state=state, error=error)
            self._has_mail.set()

    async def _left(self) -> None:
        """Waits for an end that nobody waited for; one attempt at it is bounded by the call's timeout."""
        assert self._pumping is not None
        if self._ending is None or self._over is not None:
            self._pumping.cancel()
        if not self._ended:
            await self._timing_out()
        self._pumping.cancel()
        await asyncio.wait({self._pumping})
        if not self._pumping.cancelled():
            self._pumping.result()

    async def _timing_out(self) -> None:
        assert self._pumping is not None
        late = asyncio.ensure_future(self._clock.sleep(self._timeout_s))
        try:
            await asyncio.wait({self._pumping, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            late.cancel()

    # Writing.

    async def _pump(self, message_id: str) -> None:
        """The only caller: each call takes what was written while the last one ran."""
        try:
            while self._over is None and not self._ended:
                try:
                    await self._call_once(message_id)
                    self._backoff.reset()
                except Refused as refusal:
                    await self._refused(message_id, refusal)
                self.stirred()
        finally:
            if self._over is None and not self._ended:
                self._fail(Disconnected("The backend was closed while a message was open"))

    async def _call_once(self, message_id: str) -> None:
        if self._deltas.has_unwritten:
            await self._extend(message_id)
        elif self._ending is not None:
            await self._finish(message_id, self._ending)
        elif not await self._mail():
            await self._extend(message_id)

    async def _mail(self) -> bool:
        """Waits for something to write; False where the lease is to be renewed first."""
        self._has_mail.clear()
        mail = asyncio.ensure_future(self._has_mail.wait())
        late = asyncio.ensure_future(self._clock.sleep(self._renew_s))
        try:
            await asyncio.wait({mail, late}, return_when=asyncio.FIRST_COMPLETED)
            return mail.done()
        finally:
            mail.cancel()
            late.cancel()

    async def _extend(self, message_id: str) -> None:
        request = ExtendMessageRequest(
            tenant=self._request.address.tenant,
            message_id=message_id,
            epoch=self._epoch,
            deltas=self._deltas.take(_MAX_CALL_BYTES, _MAX_CALL_DELTAS),
        )
        answer = await self._call(self._stub.ExtendMessage(request, timeout=self._timeout_s))
        self._deltas.durable(answer.durable_index)

    async def _finish(self, message_id: str, request: EndMessageRequest) -> None:
        request.tenant, request.message_id = self._request.address.tenant, message_id
        request.epoch, request.next_index = self._epoch, self._deltas.next_index
        answer = await self._call(self._stub.EndMessage(request, timeout=self._timeout_s))
        if answer.state == request.state:
            self._ended = True
        else:
            self._end_by_others(message_id, answer.state)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def _refused(self, message_id: str, refusal: Refused) -> None:
        if refusal.code == "MESSAGE_ENDED":
            self._end_by_others(message_id, await self._state(message_id))
        elif refusal.code == "PRODUCER_FENCED":
            self._fail(Fenced(refusal.message))
        elif refusal.code == "MESSAGE_TOO_LARGE" or (
            refusal.code == "INVALID_ARGUMENT" and self._refusal is None
        ):
            self._deltas.drop_unwritten()
            self._refusal = refusal
            if self._ending is not None and self._ending.state == MESSAGE_STATE_COMPLETE:
                # It cannot become that.
                self._ending = EndMessageRequest(state=MESSAGE_STATE_FAILED, error=error_of(refusal))
            self.interrupt(refusal)
        elif refusal.retryable:
            self._deltas.go_on_from_first_kept()
            await self._clock.sleep(self._backoff.next_s(refusal.retry_after_ms / 1000))
        else:
            self._fail(refusal)

    async def _state(self, message_id: str) -> MessageState.ValueType:
        """How a message has ended: an end of it changes nothing any more, and tells."""
        request = EndMessageRequest(
            tenant=self._request.address.tenant,
            message_id=message_id,
            epoch=self._epoch,
            state=MESSAGE_STATE_CANCELLED,
        )
        try:
            return (await self._stub.EndMessage(request, timeout=self._timeout_s)).state
        except grpc.aio.AioRpcError:
            return MESSAGE_STATE_EXPIRED

    def _end_by_others(self, message_id: str, state: MessageState.ValueType) -> None:
        if state == MESSAGE_STATE_CANCELLED:
            self._fail(ReplyCancelled(f"Message {message_id} was cancelled by its readers"))
        elif state == MESSAGE_STATE_EXPIRED:
            self._fail(ReplyExpired(f"The router heard nothing of message {message_id} for too long"))
        else:
            self._fail(Fenced(f"Somebody else has ended message {message_id}"))

    def _fail(self, failure: TrunklineError) -> None:
        self._over = failure
        self.interrupt(failure)
