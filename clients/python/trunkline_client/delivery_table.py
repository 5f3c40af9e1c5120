"""A worker's deliveries, their handlers and their streamed replies, across streams to the router."""

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
from trunkline_client.deciding_error import deciding_error
from trunkline_client.errors import Fenced, OutcomeUnknown, Refused, ReplyCancelled
from trunkline_client.handler import Handler, HandlerResult
from trunkline_client.in_flight_delivery import InFlightDelivery
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.reply_producer import ReplyProducer
from trunkline_client.settlement import (
    is_failure,
    retry_settlement,
    settlement_for_error,
    settlement_for_result,
)
from trunkline_client.worker_stream import WorkerStream

#: Bound of a settlement; a larger one would break the stream each time it is sent.
MAX_SETTLEMENT_BYTES = 3 << 20

log = logging.getLogger("trunkline_client")


class DeliveryTable:
    """The unsettled deliveries and the streamed replies of one worker.

    Handlers continue when the stream to the router breaks. A delivery that the router redelivers to this
    worker on the next stream continues where it was, or is settled at once if its handler has finished. A
    delivery that is not redelivered within a lease is with another worker, and its handler is cancelled.
    So for the length of a lease there may be twice the worker's capacity of handlers.
    """

    def __init__(self, clock: Clock) -> None:
        self.is_open = False
        self.draining = False
        self._clock = clock
        self._handler: Handler | None = None
        self._stream: WorkerStream | None = None
        #: `contract_minor` of the router.
        self._router_minor = 0
        self._deliveries: dict[int, InFlightDelivery] = {}
        self._by_message: dict[str, InFlightDelivery] = {}
        #: Messages that the worker opened without a delivery.
        self._open_messages: dict[ReplyProducer, None] = {}
        self._expiring: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        running = sum(each.settlement is None for each in self._deliveries.values())
        return f"<DeliveryTable {len(self._deliveries)} deliveries, {running} being handled>"

    # For the worker.

    def open(self, handler: Handler) -> None:
        """Starts to take deliveries, which this function handles."""
        self._handler, self.is_open, self.draining = handler, True, False
        self._changed = asyncio.Event()  # of this event loop

    def attach(self, stream: WorkerStream, welcome: AttachWelcome) -> None:
        """Continues on a new stream, whose welcome has arrived."""
        self._stream = stream
        self._router_minor = welcome.contract_minor
        stream.start_heartbeat(welcome, self._list_leases, self._retry_rejected)
        for reply in self._open_messages:
            self._post(None, reply)
        if self._deliveries:
            self._expiring = asyncio.create_task(self._expire(welcome.lease_s), name="await redelivery")

    def detach(self) -> None:
        """Records that the stream broke."""
        self._stream = None
        self._changed.set()
        if self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None
        for delivery in self._deliveries.values():
            delivery.held = False
            for reply in delivery.replies:
                reply.state.stream_lost()
        for reply in self._open_messages:
            reply.state.stream_lost()

    def receive(self, response: AttachResponse) -> None:
        """Handles a batch from the router; plain handler functions run within this call."""
        for result in response.results:
            self._on_settlement_result(result)
        for delivery in response.deliveries:
            self._on_delivery(delivery)
        for delivery_id in response.cancelled:
            self._on_cancelled(delivery_id)

    def drain(self) -> None:
        """Takes no more deliveries."""
        self.draining = True
        if self._stream is not None:
            self._stream.drain()

    @property
    def is_idle(self) -> bool:
        """Whether there is neither an unsettled delivery nor an open message."""
        return not self._deliveries and all(each.block.is_new for each in self._open_messages)

    async def wait_until_idle(self) -> None:
        """Waits until the table is idle, or the stream has broken."""
        while self._stream is not None and not self.is_idle:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Cancels the handlers and waits for them; the router redelivers their messages."""
        self.is_open = False
        self._stream = None
        running: list[asyncio.Future[HandlerResult]] = [
            each.handler for each in self._deliveries.values() if each.handler is not None
        ]
        for task in running:
            task.cancel()
        for reply in list(self._open_messages):
            reply.state.give_up(OutcomeUnknown("The worker stopped before the end of a message was on disk"))
            reply.state_changed()
        if self._expiring is not None:
            self._expiring.cancel()
        if running:
            await asyncio.wait(running)
        self._deliveries.clear()
        self._by_message.clear()

    # Deliveries.

    def _on_delivery(self, received: Delivery) -> None:
        delivery = self._deliveries.get(received.delivery_id)
        if delivery is not None:
            self._on_redelivery(delivery, received)
            return
        delivery = self._deliveries[received.delivery_id] = InFlightDelivery(received)
        self._by_message[received.message.id] = delivery
        assert self._handler is not None
        try:
            result = self._handler(received.message)
        except (Exception, asyncio.CancelledError) as error:
            # A plain function raises CancelledError when it asks a cancelled task for its result.
            self._settle_with_error(delivery, error)
            return
        if not inspect.isawaitable(result):
            self._settle_with_result(delivery, result)
            return
        delivery.handler = asyncio.ensure_future(result)
        delivery.handler.add_done_callback(partial(self._on_handler_done, delivery))

    def _on_redelivery(self, delivery: InFlightDelivery, received: Delivery) -> None:
        """Continues a delivery after a break, or after its lease ended while this process was stopped."""
        delivery.delivery, delivery.held = received, True
        self._post_settlement(delivery)
        for reply in delivery.replies:
            self._post(delivery, reply)

    def _on_cancelled(self, delivery_id: int) -> None:
        delivery = self._deliveries.get(delivery_id)
        if delivery is None:
            return
        delivery.cancelled = True
        cause = ReplyCancelled("The reply was cancelled by its readers")
        for reply in delivery.replies:
            if reply.state.message is None:
                reply.state.give_up(cause)
            reply.block.interrupt(cause)
        if delivery.handler is not None and all(reply.block.is_new for reply in delivery.replies):
            # The handler is still preparing its answer, which nobody waits for. Once it has replied, it may
            # finish what it does afterwards.
            delivery.handler.cancel()

    async def _expire(self, lease_s: float) -> None:
        await self._clock.sleep(lease_s)
        for delivery in [each for each in self._deliveries.values() if not each.held]:
            self._give_up(delivery, Fenced("The delivery was not redelivered to this worker after a break"))

    def _give_up(self, delivery: InFlightDelivery, reason: Fenced) -> None:
        """Forgets a delivery that another worker has, and stops its handler."""
        self._forget(delivery)
        is_writing = any(each.block.can_interrupt for each in delivery.replies)
        for reply in delivery.replies:
            reply.state.give_up(reason)
            reply.state_changed()
        if delivery.handler is not None and not is_writing:
            delivery.handler.cancel()

    def _forget(self, delivery: InFlightDelivery) -> None:
        del self._deliveries[delivery.delivery.delivery_id]
        self._by_message.pop(delivery.delivery.message.id, None)
        self._changed.set()

    # Settlement.

    def _on_handler_done(self, delivery: InFlightDelivery, handler: asyncio.Future[HandlerResult]) -> None:
        is_current = self.is_open and self._deliveries.get(delivery.delivery.delivery_id) is delivery
        error: BaseException | None
        if handler.cancelled():
            error = asyncio.CancelledError("the handler was cancelled")
        else:
            error = handler.exception()
        if is_current and error is not None:
            self._settle_with_error(delivery, error)
        elif is_current:
            self._settle_with_result(delivery, handler.result())

    def _settle_with_result(self, delivery: InFlightDelivery, result: HandlerResult) -> None:
        try:
            settlement = settlement_for_result(delivery.delivery.delivery_id, result)
            size = settlement.ByteSize()
            if size > MAX_SETTLEMENT_BYTES:
                raise ValueError(f"the replies have {size} bytes; at most {MAX_SETTLEMENT_BYTES} are allowed")
        except Exception as error:
            self._settle_with_error(delivery, error)
        else:
            self._settle(delivery, settlement)

    def _settle_with_error(self, delivery: InFlightDelivery, error: BaseException) -> None:
        received = delivery.delivery
        error = deciding_error(error)
        if delivery.cancelled and not isinstance(error, Fenced):
            if is_failure(error) and not isinstance(error, asyncio.CancelledError):
                log.info("the handler of the cancelled message %s failed: %r", received.message.id, error)
            error = ReplyCancelled("The reply was cancelled by its readers")
        settlement = settlement_for_error(
            received, error, failure_reported=delivery.failure_reported, router_minor=self._router_minor
        )
        if settlement is None and delivery.held:
            # Another worker had the delivery and returned it; the next attempt continues what that one wrote.
            settlement = retry_settlement(received, str(error))
        if settlement is None:
            log.info("another worker has message %s: %s", received.message.id, error)
            self._forget(delivery)
            return
        if is_failure(error):
            log.error(delivery.describe_failure(error))
        self._settle(delivery, settlement)

    def _settle(self, delivery: InFlightDelivery, settlement: Settlement) -> None:
        delivery.settlement = settlement
        for reply in delivery.replies:
            # A task that was left behind must not write beside the next attempt.
            reply.block.interrupt(Fenced(f"The handler of message {delivery.delivery.message.id} has ended"))
            if not settlement.HasField("retry"):  # another attempt continues the open replies
                reply.abandon()
        self._post_settlement(delivery)

    def _post_settlement(self, delivery: InFlightDelivery) -> None:
        if delivery.held and delivery.settlement is not None and self._stream is not None:
            delivery.must_resend = False
            self._stream.settle(delivery.settlement, delivery.replies)

    def _on_settlement_result(self, result: SettlementResult) -> None:
        delivery = self._deliveries.get(result.delivery_id)
        if result.HasField("error"):
            error = result.error
            log.warning("delivery %d was not settled: %s (%s)", result.delivery_id, error.message, error.code)
        if delivery is None or delivery.settlement is None:
            return
        if not result.HasField("error") or error.code == "DELIVERY_NOT_HELD":
            self._forget(delivery)
        elif error.retryable:
            delivery.must_resend = True
        elif delivery.settlement.WhichOneof("outcome") is None:
            # The replies can never be committed, so this attempt has failed.
            self._settle_with_error(delivery, Refused(error.code, error.message))
        else:
            self._forget(delivery)

    def _retry_rejected(self) -> None:
        """Resends what the router rejected for now."""
        for delivery in self._deliveries.values():
            if delivery.must_resend:
                self._post_settlement(delivery)
            for reply in delivery.replies:
                reply.state.retry_end()
                self._post(delivery, reply)
        for reply in self._open_messages:
            reply.state.retry_end()
            self._post(None, reply)

    def _list_leases(self) -> Iterable[int]:
        """Ids of the deliveries whose handlers are running.

        A cancelled delivery keeps its lease no longer: a handler that does not end blocks its conversation
        for the rest of the lease only.
        """
        return [
            number
            for number, each in self._deliveries.items()
            if each.held and each.settlement is None and not each.cancelled
        ]

    # Streamed replies.

    def reply(self, message: Message, request: OpenReply, on_cancel: OnCancel | None) -> ReplyProducer:
        """Makes a streamed reply to a delivered message. Raises Fenced or ReplyCancelled."""
        delivery = self._by_message.get(message.id)
        if delivery is None or delivery.settlement is not None:
            raise Fenced(f"This worker does not hold the delivery of message {message.id}")
        if delivery.cancelled:
            raise ReplyCancelled(f"The reply to message {message.id} was cancelled by its readers")
        number = len(delivery.replies) + 1
        request.key = message.id if number == 1 else f"{message.id}/{number}"
        request.delivery_id = delivery.delivery.delivery_id
        made = ReplyProducer(
            request, partial(self._post, delivery), partial(self._on_block_left, delivery), on_cancel
        )
        delivery.replies.append(made)
        return made

    def open_message(self, request: OpenReply, on_cancel: OnCancel | None) -> ReplyProducer:
        """Makes a streamed message without a delivery."""
        made = ReplyProducer(
            request, partial(self._post, None), partial(self._on_block_left, None), on_cancel
        )
        self._open_messages[made] = None
        return made

    def _post(self, delivery: InFlightDelivery | None, reply: ReplyProducer) -> None:
        is_held = delivery is None or delivery.held
        if self._stream is not None and is_held and not reply.block.is_new:
            self._stream.post(reply)

    def _on_block_left(self, delivery: InFlightDelivery | None, reply: ReplyProducer) -> None:
        if delivery is None:
            self._open_messages.pop(reply, None)
            self._changed.set()
        else:
            delivery.failure_reported = delivery.failure_reported or reply.failure_reported
