"""What a worker holds: deliveries, their handlers and their replies, whatever becomes of streams."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterable
from functools import partial

from trunkline.v1.agent_service_pb2 import (
    AttachResponse,
    AttachWelcome,
    Delivery,
    OpenReply,
    Settlement,
    SettlementResult,
)
from trunkline.v1.message_pb2 import Message

from trunkline_client.clock import Clock
from trunkline_client.errors import Fenced, Refused, ReplyCancelled
from trunkline_client.handler import Handler, HandlerResult, settlement
from trunkline_client.in_flight_delivery import InFlightDelivery
from trunkline_client.message_writer import OnCancel
from trunkline_client.outcomes import after, again, is_failure
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.worker_stream import WorkerStream

#: The largest settlement that is sent; a larger one would break the stream, each time anew.
MAX_SETTLEMENT_BYTES = 3 << 20

log = logging.getLogger("trunkline_client")


class DeliveryTable:
    """The deliveries and streamed replies of one worker.

    When the stream to the router breaks, handlers go on. What the router gives back to this worker on
    the next stream goes on where it was, or is settled at once if its handler has finished; what it has
    not given back within a lease is in other hands, and its handler is cancelled. So for a lease there
    may be twice the worker's capacity of handlers.
    """

    def __init__(self, clock: Clock) -> None:
        self.draining = False
        self._clock = clock
        self._handler: Handler | None = None
        self._attachment: WorkerStream | None = None
        self._handlings: dict[int, InFlightDelivery] = {}
        self._by_message: dict[str, InFlightDelivery] = {}
        #: Replies without a delivery.
        self._said: dict[StreamedReply, None] = {}
        self._lapsing: asyncio.Task[None] | None = None
        self._closed = False
        self._eased = asyncio.Event()

    def __repr__(self) -> str:
        running = sum(each.settlement is None for each in self._handlings.values())
        return f"<DeliveryTable {len(self._handlings)} deliveries, {running} in hand>"

    # For the worker.

    def begin(self, handler: Handler) -> None:
        """What to do with deliveries."""
        self._handler, self._closed, self.draining = handler, False, False

    def attached(self, attachment: WorkerStream, welcome: AttachWelcome) -> None:
        """A router has welcomed the worker on a new stream."""
        self._attachment = attachment
        attachment.keep_alive(welcome, self._in_hand, self._beat)
        for reply in self._said:
            attachment.post(reply)
        if self._handlings:
            self._lapsing = asyncio.create_task(self._lapse(welcome.lease_s), name="await redelivery")

    def detached(self) -> None:
        """The stream broke."""
        self._attachment = None
        self._eased.set()
        if self._lapsing is not None:
            self._lapsing.cancel()
            self._lapsing = None
        for handling in self._handlings.values():
            handling.held = False
            for reply in handling.replies:
                reply.line.stream_lost()
        for reply in self._said:
            reply.line.stream_lost()

    def take(self, response: AttachResponse) -> None:
        """Deals with a batch from the router; plain functions are called here and now."""
        for result in response.results:
            self._settled(result)
        for delivery in response.deliveries:
            self._deliver(delivery)
        for delivery_id in response.cancelled:
            self._cancelled(delivery_id)

    def drain(self) -> None:
        """Takes no more deliveries."""
        self.draining = True
        if self._attachment is not None:
            self._attachment.drain()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing is being said."""
        return not self._handlings and not self._said

    async def idle(self) -> None:
        """Waits until it is; not while there is no stream."""
        while self._attachment is not None and not self.is_idle:
            self._eased.clear()
            await self._eased.wait()

    async def close(self) -> None:
        """Cancels the handlers; what they work on is delivered again, to whoever comes next."""
        self._closed = True
        self._attachment = None
        running: list[asyncio.Future[HandlerResult]] = [
            each.handler for each in self._handlings.values() if each.handler is not None
        ]
        for task in running:
            task.cancel()
        for reply in list(self._said):
            reply.line.give_up(Fenced("The worker ends"))
            reply.changed()
        if self._lapsing is not None:
            self._lapsing.cancel()
        if running:
            await asyncio.wait(running)
        self._handlings.clear()
        self._by_message.clear()

    # Deliveries.

    def _deliver(self, delivery: Delivery) -> None:
        handling = self._handlings.get(delivery.delivery_id)
        if handling is not None:
            self._given_back(handling, delivery)
            return
        handling = self._handlings[delivery.delivery_id] = InFlightDelivery(delivery)
        self._by_message[delivery.message.id] = handling
        assert self._handler is not None
        try:
            returned = self._handler(delivery.message)
        except Exception as error:
            self._settle_after(handling, error)
            return
        if not inspect.isawaitable(returned):
            self._settle_with(handling, returned)
            return
        handling.handler = asyncio.ensure_future(returned)
        handling.handler.add_done_callback(partial(self._handled, handling))

    def _given_back(self, handling: InFlightDelivery, delivery: Delivery) -> None:
        """It comes again: after a break, or as its lease ended while this process was stopped."""
        handling.delivery, handling.held = delivery, True
        self._post_settlement(handling)
        for reply in handling.replies:
            self._posted(handling, reply)

    def _cancelled(self, delivery_id: int) -> None:
        handling = self._handlings.get(delivery_id)
        if handling is None:
            return
        handling.cancelled = True
        cause = ReplyCancelled("The reply was cancelled by its readers")
        for reply in handling.replies:
            if reply.line.message is None:
                reply.line.give_up(cause)
            reply.interrupt(cause)

    async def _lapse(self, lease_s: float) -> None:
        await self._clock.sleep(lease_s)
        for handling in [each for each in self._handlings.values() if not each.held]:
            self._drop(handling, Fenced("The delivery was not given back to this worker after a break"))

    def _drop(self, handling: InFlightDelivery, why: Fenced) -> None:
        """It is in other hands."""
        self._forget(handling)
        within = [each for each in handling.replies if each.is_inside]
        for reply in handling.replies:
            reply.line.give_up(why)
            reply.changed()
        if handling.handler is not None and not within:
            handling.handler.cancel()

    def _forget(self, handling: InFlightDelivery) -> None:
        del self._handlings[handling.delivery.delivery_id]
        self._by_message.pop(handling.delivery.message.id, None)
        self._eased.set()

    # Settling.

    def _handled(self, handling: InFlightDelivery, handler: asyncio.Future[HandlerResult]) -> None:
        """A handler has returned, failed, or was cancelled."""
        gone = self._closed or self._handlings.get(handling.delivery.delivery_id) is not handling
        if handler.cancelled():
            if not gone:
                self._settle_after(handling, asyncio.CancelledError("the handler was cancelled"))
            return
        error = handler.exception()
        if not gone and error is not None:
            self._settle_after(handling, error)
        elif not gone:
            self._settle_with(handling, handler.result())

    def _settle_with(self, handling: InFlightDelivery, returned: HandlerResult) -> None:
        try:
            settled = settlement(handling.delivery.delivery_id, returned)
            if settled.ByteSize() > MAX_SETTLEMENT_BYTES:
                problem = f"the replies have {settled.ByteSize()} bytes; {MAX_SETTLEMENT_BYTES} can be sent"
                raise ValueError(problem)
        except Exception as error:
            self._settle_after(handling, error)
        else:
            self._settle(handling, settled)

    def _settle_after(self, handling: InFlightDelivery, error: BaseException) -> None:
        delivery = handling.delivery
        settled = after(delivery, error, told=handling.failure_reported)
        if settled is None and handling.held:
            # It was in other hands, has come back, and goes on from what they said.
            settled = again(delivery, 0, str(error))
        if settled is None:
            log.info("message %s is in other hands: %s", delivery.message.id, error)
            self._forget(handling)
            return
        if is_failure(error):
            log.error(
                "the handler failed on message %s (attempt %d), %s: %s: %s",
                delivery.message.id,
                delivery.attempt,
                "and the reply says so" if handling.failure_reported else "which will be delivered again",
                type(error).__name__,
                error,
            )
        self._settle(handling, settled)

    def _settle(self, handling: InFlightDelivery, settled: Settlement) -> None:
        handling.settlement = settled
        if not settled.HasField("retry"):  # another attempt goes on with what is open
            for reply in handling.replies:
                reply.abandon()
        self._post_settlement(handling)

    def _post_settlement(self, handling: InFlightDelivery) -> None:
        if handling.held and handling.settlement is not None and self._attachment is not None:
            handling.refused = False
            self._attachment.settle(handling.settlement, handling.replies)

    def _settled(self, result: SettlementResult) -> None:
        """The router has taken a settlement, or not."""
        handling = self._handlings.get(result.delivery_id)
        if result.HasField("error"):
            error = result.error
            log.warning("delivery %d was not settled: %s (%s)", result.delivery_id, error.message, error.code)
        if handling is None or handling.settlement is None:
            return
        if not result.HasField("error") or error.code == "DELIVERY_NOT_HELD":
            self._forget(handling)
        elif error.retryable:
            handling.refused = True
        elif handling.settlement.WhichOneof("outcome") is None:
            # Its replies can never be committed, so this attempt has failed.
            self._settle_after(handling, Refused(error.code, error.message))
        else:
            self._forget(handling)

    def _beat(self) -> None:
        """Tries again what was refused for now."""
        for handling in self._handlings.values():
            if handling.refused:
                self._post_settlement(handling)
            for reply in handling.replies:
                reply.line.try_again()
                self._posted(handling, reply)
        for reply in self._said:
            reply.line.try_again()
            self._posted(None, reply)

    def _in_hand(self) -> Iterable[int]:
        """Deliveries whose handlers still run."""
        return [number for number, each in self._handlings.items() if each.held and each.settlement is None]

    # Streamed replies.

    def reply(self, message: Message, request: OpenReply, on_cancel: OnCancel | None) -> StreamedReply:
        """A streamed reply to the message of a delivery."""
        handling = self._by_message.get(message.id)
        if handling is None:
            raise Fenced(f"Message {message.id} is not in this worker's hands")
        if handling.cancelled:
            raise ReplyCancelled(f"Nobody wants an answer to message {message.id} any longer")
        number = len(handling.replies) + 1
        request.key = message.id if number == 1 else f"{message.id}/{number}"
        request.delivery_id = handling.delivery.delivery_id
        made = StreamedReply(
            request, partial(self._posted, handling), partial(self._left, handling), on_cancel
        )
        handling.replies.append(made)
        return made

    def open_message(self, request: OpenReply, on_cancel: OnCancel | None) -> StreamedReply:
        """A streamed message without a delivery."""
        made = StreamedReply(request, partial(self._posted, None), partial(self._left, None), on_cancel)
        self._said[made] = None
        return made

    def _posted(self, handling: InFlightDelivery | None, reply: StreamedReply) -> None:
        if self._attachment is not None and (handling is None or handling.held):
            self._attachment.post(reply)

    def _left(self, handling: InFlightDelivery | None, reply: StreamedReply) -> None:
        """Its block was left; an end that nobody waits for is still written."""
        if handling is None:
            self._said.pop(reply, None)
            self._eased.set()
        else:
            handling.failure_reported = handling.failure_reported or reply.failure_reported
