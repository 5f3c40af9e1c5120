"""A backend's open message at the router, kept up by one unary call after another."""

from __future__ import annotations

import asyncio

from trunkline.v1.broadcast_service_pb2 import EndMessageRequest, ExtendMessageRequest, OpenMessageRequest
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
from trunkline_client.clock import Clock
from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import (
    AlreadyAnswered,
    Fenced,
    OutcomeUnknown,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TransportError,
    TrunklineError,
)
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.message_producer import MessageProducer
from trunkline_client.reader_errors import error_for_rejection
from trunkline_client.router_connection import RouterConnection
from trunkline_client.rpc_errors import retry_delay_s

#: The contract's bounds of one call, with room for what surrounds the deltas.
_MAX_CALL_BYTES = 512 << 10
_MAX_CALL_DELTAS = 1024
#: For a router that does not announce its lease.
_DEFAULT_LEASE_S = 15


class UnaryProducer(MessageProducer):
    """Writes an open message by unary calls, at most one at a time.

    Each call takes the deltas that were buffered while the previous one ran. A call that fails for now is
    repeated after a backoff; the router ignores deltas that it already has.
    """

    def __init__(
        self,
        connection: RouterConnection,
        request: OpenMessageRequest,
        clock: Clock,
        timeout_s: float,
        on_cancel: OnCancel | None,
    ) -> None:
        super().__init__(on_cancel)
        self._connection = connection
        self._rpcs = connection.broadcast
        self._request = request
        self._clock = clock
        self._timeout_s = timeout_s
        self._backoff = Backoff(clock.random)
        self._buffer = DeltaBuffer()
        self._failure: TrunklineError | None = None
        #: Rejection of the last deltas: nothing more can be added, but the message can still be ended.
        self._rejection: Refused | None = None
        self._epoch = 0
        #: Interval of calls without deltas.
        self._renewal_interval_s = 0.0
        self._has_work = asyncio.Event()
        #: The end to write after the deltas.
        self._pending_end: EndMessageRequest | None = None
        self._ended = False
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"{self.whole.id} {self._buffer!r}"

    @property
    def buffer(self) -> DeltaBuffer:
        """Deltas on their way to the log."""
        return self._buffer

    @property
    def failure(self) -> TrunklineError | None:
        """The reason why the message ended, unless this producer ended it."""
        return self._failure

    def write_soon(self) -> None:
        """Wakes the writer."""
        self._has_work.set()

    async def open(self) -> Message:
        """Opens the message and starts to write it."""
        answer = await self._connection.call_mutating(self._rpcs.OpenMessage, self._request)
        if answer.message.state != MESSAGE_STATE_OPEN:
            raise AlreadyAnswered(answer.message)
        self._epoch = answer.epoch
        self._renewal_interval_s = (answer.lease_s or _DEFAULT_LEASE_S) / 3
        self._buffer.begin(answer.message.next_index)
        self._writer = asyncio.create_task(self._write(answer.message.id), name="extend a message")
        return answer.message

    async def end(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the message and waits until the end is on disk."""
        self.end_soon(state, error)
        await self.block.wait_until(lambda: self._ended, lambda: self._failure)
        if self._rejection is not None and state == MESSAGE_STATE_COMPLETE:
            raise self._rejection  # the last deltas were rejected after the block had asked for this end

    def end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the message after its deltas; only the first call counts."""
        if self._pending_end is None:
            self._pending_end = EndMessageRequest(state=state, error=error)
            self._has_work.set()

    async def leave(self) -> None:
        """Waits for a pending end, at most for the timeout of one call, and stops the writer."""
        assert self._writer is not None
        if self._pending_end is None or self._failure is not None:
            self._writer.cancel()
        if not self._ended:
            await self._wait_for_writer()
        self._writer.cancel()
        await asyncio.wait({self._writer})
        if not self._writer.cancelled():
            self._writer.result()

    async def _wait_for_writer(self) -> None:
        assert self._writer is not None
        timeout = asyncio.ensure_future(self._clock.sleep(self._timeout_s))
        try:
            await asyncio.wait({self._writer, timeout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timeout.cancel()

    # The writer.

    async def _write(self, message_id: str) -> None:
        try:
            while self._failure is None and not self._ended:
                try:
                    await self._make_next_call(message_id)
                    self._backoff.reset()
                except Refused as refusal:
                    await self._handle_refusal(message_id, refusal)
                except TransportError as error:
                    await self._retry_or_fail(error)
                self.block.notify()
        finally:
            if self._failure is None and not self._ended:
                self._fail(OutcomeUnknown("The block ended before the end of its message was on disk"))

    async def _make_next_call(self, message_id: str) -> None:
        if self._buffer.has_unwritten:
            await self._extend(message_id)
        elif self._pending_end is not None:
            await self._send_end(message_id, self._pending_end)
        elif not await self._wait_for_work():
            await self._extend(message_id)

    async def _wait_for_work(self) -> bool:
        """Waits for something to write; returns False if the lease must be renewed first."""
        self._has_work.clear()
        work = asyncio.ensure_future(self._has_work.wait())
        renewal = asyncio.ensure_future(self._clock.sleep(self._renewal_interval_s))
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
            return work.done()
        finally:
            work.cancel()
            renewal.cancel()

    async def _extend(self, message_id: str) -> None:
        request = ExtendMessageRequest(
            tenant=self._request.address.tenant,
            message_id=message_id,
            epoch=self._epoch,
            deltas=self._buffer.take(_MAX_CALL_BYTES, _MAX_CALL_DELTAS),
        )
        answer = await self._connection.call_mutating(self._rpcs.ExtendMessage, request)
        self._buffer.forget_before(answer.durable_index)

    async def _send_end(self, message_id: str, request: EndMessageRequest) -> None:
        request.tenant, request.message_id = self._request.address.tenant, message_id
        request.epoch, request.next_index = self._epoch, self._buffer.next_index
        answer = await self._connection.call_mutating(self._rpcs.EndMessage, request)
        if answer.state == request.state:
            self._ended = True
        else:
            self._fail_ended_elsewhere(message_id, answer.state)

    async def _handle_refusal(self, message_id: str, refusal: Refused) -> None:
        if refusal.code == "MESSAGE_ENDED":
            self._fail_ended_elsewhere(message_id, await self._read_final_state(message_id))
        elif refusal.code == "PRODUCER_FENCED":
            self._fail(Fenced(refusal.message))
        elif refusal.code == "MESSAGE_TOO_LARGE" or (
            refusal.code == "INVALID_ARGUMENT" and self._rejection is None
        ):
            self._reject(refusal)
        else:
            await self._retry_or_fail(refusal)

    def _reject(self, refusal: Refused) -> None:
        """Gives up the deltas that the router rejected; the message can still end FAILED."""
        self._buffer.drop_unwritten()
        self._rejection = refusal
        if self._pending_end is not None and self._pending_end.state == MESSAGE_STATE_COMPLETE:
            self._pending_end = EndMessageRequest(
                state=MESSAGE_STATE_FAILED, error=error_for_rejection(refusal)
            )
        self.block.interrupt(refusal)

    async def _retry_or_fail(self, error: Refused | TransportError) -> None:
        """Waits before the next call; fails with the error if it is not retryable."""
        delay_s = retry_delay_s(error)
        if delay_s is None:
            self._fail(error)
        elif self._connection.is_closed:
            self._fail(OutcomeUnknown("The backend was closed before the end of a message was on disk"))
        else:
            self._buffer.rewind_to_first_kept()
            await self._clock.sleep(self._backoff.next_s(delay_s))

    async def _read_final_state(self, message_id: str) -> MessageState.ValueType:
        """The state in which the message ended: ending it again changes nothing and returns it."""
        request = EndMessageRequest(
            tenant=self._request.address.tenant,
            message_id=message_id,
            epoch=self._epoch,
            state=MESSAGE_STATE_CANCELLED,
        )
        try:
            return (await self._connection.call_mutating(self._rpcs.EndMessage, request)).state
        except (Refused, TransportError):
            return MESSAGE_STATE_EXPIRED

    def _fail_ended_elsewhere(self, message_id: str, state: MessageState.ValueType) -> None:
        if state == MESSAGE_STATE_CANCELLED:
            self._fail(ReplyCancelled(f"Message {message_id} was cancelled by its readers"))
        elif state == MESSAGE_STATE_EXPIRED:
            self._fail(
                ReplyExpired(f"Message {message_id} expired: the router received nothing for too long")
            )
        else:
            self._fail(Fenced(f"Another producer has ended message {message_id}"))

    def _fail(self, failure: TrunklineError) -> None:
        self._failure = failure
        self.block.interrupt(failure)
