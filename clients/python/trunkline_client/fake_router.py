"""A router in the process of a test, for one worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import grpc
import grpc.aio
from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
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
from trunkline.v1.catalogue import CONTRACT_MINOR, DELIVERY_NOT_HELD, DELTA_GAP, MESSAGE_ENDED, Entry
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Author,
    Message,
    MessageState,
)

from trunkline_client.builders import Content, address, parts
from trunkline_client.fake_delivery import FakeDelivery, FakeObservation, FakeReply
from trunkline_client.reader_errors import AGENT_FAILED

Context = grpc.aio.ServicerContext[Any, Any]

#: Lease of deliveries and replies: a worker that was not given a delivery back gives it up after this.
LEASE_S = 1


class FakeRouter(FakeObservation):
    """The router's side of `AgentService.Attach`, for one worker on a real gRPC stream.

    Replies are opened, extended and ended, deliveries settled and cancels passed on as by a router. There is
    no log, no history, no limit, and no order between the messages of a conversation. Redelivery happens only
    when the test asks for it or the stream broke, and no number of attempts makes a dead letter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        #: Deliveries of the test, in order.
        self.deliveries: dict[int, FakeDelivery] = {}
        #: Messages that the worker opened without a delivery.
        self.messages: list[FakeReply] = []
        #: Introduction of the attached worker.
        self.hello: AttachHello | None = None
        #: Whether the worker takes no more deliveries.
        self.draining = False
        self._ids = count(1)
        self._lost: set[int] = set()
        self._had_stream = False
        self._by_key: dict[str, FakeReply] = {}
        self._by_number: dict[int, FakeReply] = {}
        self._outgoing: asyncio.Queue[AttachResponse | None] = asyncio.Queue()
        self._server = grpc.aio.server()

    def __repr__(self) -> str:
        return f"<FakeRouter {'attached' if self.hello else 'waiting for the worker'}, {self.deliveries}>"

    async def start(self) -> None:
        """Listens on a free port of 127.0.0.1."""
        attach = grpc.stream_stream_rpc_method_handler(
            self._attach,
            request_deserializer=AttachRequest.FromString,
            response_serializer=AttachResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("trunkline.v1.AgentService", {"Attach": attach})
        self._server.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        """Ends the stream and stops listening."""
        self._outgoing.put_nowait(None)
        await self._server.stop(None)

    # For the test.

    async def deliver(
        self,
        content: Content,
        *,
        agent: str = "",
        user: str = "alice",
        conversation: str = "",
        attributes: dict[str, str] | None = None,
    ) -> FakeDelivery:
        """Delivers a user's message to the worker, which is attached by then.

        Args:
            content: Text, a part or parts.
            agent: The agent; the worker's first one if empty.
            user: The user who sent it.
            conversation: `person:<id>` or `group:<id>`; the user's own if empty.
            attributes: Strings of the application's own.

        Returns:
            The delivery, which the worker has not settled yet.

        Raises:
            AssertionError: The worker does not attach, or drains.
        """
        await self.wait_until(lambda: self.hello)
        assert self.hello is not None
        assert not self.draining, "a worker that drains gets no more deliveries"
        number = next(self._ids)
        message = Message(
            id=f"m{number}",
            address=address(
                tenant=self.hello.tenant,
                agent=agent or self.hello.agents[0],
                platform="test",
                conversation=conversation or f"person:{user}",
            ),
            author=Author(role=ROLE_USER, user=user),
            parts=parts(content),
            attributes=attributes or {},
            state=MESSAGE_STATE_COMPLETE,
        )
        delivery = FakeDelivery(
            Delivery(delivery_id=number, message=message, attempt=1), self._notify, self._redeliver
        )
        self.deliveries[number] = delivery
        self._send(deliveries=[delivery.delivery])
        return delivery

    async def break_stream(self) -> None:
        """Breaks the worker's stream, and redelivers what it holds once it has attached again."""
        self.hello = None
        self._outgoing.put_nowait(None)
        await self.wait_until(lambda: self.hello)

    async def give_away(self, delivery: FakeDelivery) -> None:
        """Breaks the worker's stream and keeps a delivery, as if another worker had it.

        The worker gives it up after the lease of 1 s: Fenced in a reply's block, else a cancel.
        """
        self._lost.add(delivery.delivery.delivery_id)
        await self.break_stream()

    async def give_back(self, delivery: FakeDelivery) -> None:
        """Delivers a message again that was given away: its open reply continues where it stands."""
        self._lost.discard(delivery.delivery.delivery_id)
        delivery.delivery.attempt += 1
        await self._redeliver(delivery)

    async def _redeliver(self, delivery: FakeDelivery) -> None:
        self._send(deliveries=[delivery.delivery])

    async def _notify(self, delivery: FakeDelivery) -> None:
        """Reports a cancel, and the ends of replies, by the test."""
        ended = [
            ReplyEnded(reply=number, state=reply.state)
            for number, reply in self._by_number.items()
            if reply in delivery.replies and reply.state != MESSAGE_STATE_OPEN
        ]
        is_cancelled = delivery.cancelled and not delivery.outcome
        self._send(cancelled=[delivery.delivery.delivery_id] if is_cancelled else [], ended=ended)

    def _send(self, **batch: Any) -> None:
        self._outgoing.put_nowait(AttachResponse(**batch))

    # The stream.

    async def _attach(self, requests: AsyncIterator[AttachRequest], context: Context) -> None:
        hello = (await context.read()).hello
        outgoing: asyncio.Queue[AttachResponse | None] = asyncio.Queue()
        self._outgoing = outgoing
        self._by_number.clear()
        self.draining = False
        welcome = AttachWelcome(
            router_id="test", contract_minor=CONTRACT_MINOR, lease_s=LEASE_S, reply_lease_s=LEASE_S
        )
        self._send(welcome=welcome)
        self._send(deliveries=self._take_redeliveries())
        reading = asyncio.create_task(self._read(context))
        self.hello = hello
        self.changed()
        writing = asyncio.create_task(self._write(context, outgoing))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
        if not reading.cancelled():
            reading.result()

    def _take_redeliveries(self) -> list[Delivery]:
        waiting = [
            each.delivery
            for number, each in self.deliveries.items()
            if not each.outcome and number not in self._lost
        ]
        for each in waiting:
            if self._had_stream:
                each.attempt += 1
        self._had_stream = True
        return waiting

    async def _write(self, context: Context, outgoing: asyncio.Queue[AttachResponse | None]) -> None:
        while (response := await outgoing.get()) is not None:
            await context.write(response)

    async def _read(self, context: Context) -> None:
        while (batch := await context.read()) is not grpc.aio.EOF:
            self._receive(batch)

    def _receive(self, batch: AttachRequest) -> None:
        """Handles a batch in the contract's order: opens, deltas, ends, settlements."""
        self.draining = self.draining or batch.drain
        for opening in batch.opens:
            self._open(opening)
        for deltas in batch.deltas:
            self._extend(deltas)
        for end in batch.ends:
            self._end(end)
        for settlement in batch.settlements:
            self._settle(settlement)

    def _held(self, number: int) -> FakeDelivery | None:
        delivery = self.deliveries.get(number)
        return None if delivery is None or delivery.outcome or number in self._lost else delivery

    def _open(self, opening: OpenReply) -> None:
        delivery = self._held(opening.delivery_id)
        if opening.delivery_id and delivery is None:
            error = _error(DELIVERY_NOT_HELD, delivery_id=opening.delivery_id)
            self._send(opened=[ReplyOpened(reply=opening.reply, error=error)])
            return
        reply = self._by_key.get(opening.key)
        if reply is None:
            reply = self._by_key[opening.key] = FakeReply(self._new_message(opening, delivery), opening.key)
            listing = self.messages if delivery is None else delivery.replies
            listing.append(reply)
        self._by_number[opening.reply] = reply
        opened = Message()
        opened.CopyFrom(reply.message)
        ended = []
        if delivery is not None and delivery.cancelled:
            reply.end(MESSAGE_STATE_CANCELLED)
            ended = [ReplyEnded(reply=opening.reply, state=reply.state)]
        self._send(opened=[ReplyOpened(reply=opening.reply, message=opened)], ended=ended)
        observed: FakeObservation = self if delivery is None else delivery
        observed.changed()

    def _new_message(self, opening: OpenReply, delivery: FakeDelivery | None) -> Message:
        place = opening.address if delivery is None else delivery.message.address
        author = Author(role=ROLE_AGENT, name=opening.name or place.agent)
        return Message(
            id=f"r{next(self._ids)}",
            address=place,
            author=author,
            reply_to=opening.reply_to if delivery is None else delivery.message.id,
            attributes=opening.attributes,
            state=MESSAGE_STATE_OPEN,
        )

    def _extend(self, deltas: ReplyDeltas) -> None:
        reply = self._by_number[deltas.reply]
        progress = ReplyProgress(reply=deltas.reply)
        for delta in deltas.deltas:
            expected = reply.message.next_index
            if reply.state != MESSAGE_STATE_OPEN:
                state = MessageState.Name(reply.state)
                progress.error.CopyFrom(_error(MESSAGE_ENDED, message_id=reply.message.id, state=state))
                break
            if delta.index > expected:
                progress.error.CopyFrom(_gap(reply, delta.index))
                break
            if delta.index == expected:
                reply.extend(delta)
        progress.next_index = progress.durable_index = reply.message.next_index
        self._send(progress=[progress])

    def _end(self, end: EndReply) -> None:
        reply = self._by_number[end.reply]
        ended = ReplyEnded(reply=end.reply)
        is_complete = end.next_index == reply.message.next_index or end.state != MESSAGE_STATE_COMPLETE
        if reply.state == MESSAGE_STATE_OPEN and not is_complete:
            ended.error.CopyFrom(_gap(reply, end.next_index))
        else:
            reply.end(end.state, end.error)
            ended.state = reply.state
        self._send(ended=[ended])

    def _settle(self, settlement: Settlement) -> None:
        delivery = self._held(settlement.delivery_id)
        result = SettlementResult(delivery_id=settlement.delivery_id)
        if delivery is None:
            result.error.CopyFrom(_error(DELIVERY_NOT_HELD, delivery_id=settlement.delivery_id))
        else:
            for reply in () if delivery.cancelled else settlement.replies:
                message = self._new_message(OpenReply(name=reply.name, attributes=reply.attributes), delivery)
                message.parts.extend(reply.parts)
                message.state = MESSAGE_STATE_COMPLETE
                if reply.HasField("error"):
                    message.state = MESSAGE_STATE_FAILED
                    message.error.CopyFrom(reply.error)
                delivery.replies.append(FakeReply(message))
            if settlement.HasField("reject"):
                self._report_rejection(delivery)
            delivery.settle(settlement)
        self._send(results=[result])

    def _report_rejection(self, delivery: FakeDelivery) -> None:
        """Ends the replies to a rejected delivery FAILED; without any, adds one."""
        if not delivery.replies:
            message = self._new_message(OpenReply(), delivery)
            delivery.replies.append(FakeReply(message))
        for each in delivery.replies:
            each.end(MESSAGE_STATE_FAILED, AGENT_FAILED)


def _gap(reply: FakeReply, index: int) -> Error:
    expected = reply.message.next_index
    return _error(DELTA_GAP, message_id=reply.message.id, index=index, expected=expected)


def _error(entry: Entry, **values: object) -> Error:
    return Error(code=entry.code, message=entry.sentence(**values), retryable=entry.retryable)
