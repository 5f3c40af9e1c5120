"""One stream between a worker and a router: its output queue, and the router's reports on replies."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import count

from trunkline.v1.agent_service_pb2 import (
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    ReplyDeltas,
    Settlement,
)

from trunkline_client.clock import Clock
from trunkline_client.reply_producer import ReplyProducer

#: A batch is closed once it is this large.
MAX_BATCH_BYTES = 1 << 20
#: Deltas of one reply in one batch, so that each of many replies gets a share of it.
MAX_DELTAS_PER_REPLY = 256


class WorkerStream:
    """Output of one stream; it ends with the stream, while deliveries and replies continue.

    Its queues refer to the worker's replies and deliveries, which have bounds of their own.
    """

    def __init__(self, hello: AttachHello, clock: Clock) -> None:
        self._hello = hello
        self._clock = clock
        self._numbers = count(1)
        self._reply_by_number: dict[int, ReplyProducer] = {}
        self._number_of: dict[ReplyProducer, int] = {}
        #: Replies with output, served in turn.
        self._ready: dict[ReplyProducer, None] = {}
        self._settlements: deque[tuple[Settlement, Iterable[ReplyProducer]]] = deque()
        self._has_output = asyncio.Event()
        self._heartbeat_due = False
        self._drain_due = False
        self._list_leases: Callable[[], Iterable[int]] = tuple
        self._on_heartbeat: Callable[[], None] = lambda: None
        self._heartbeat: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<WorkerStream {len(self._ready)} replies ready, {len(self._settlements)} settlements queued>"

    # Output.

    def start_heartbeat(
        self,
        welcome: AttachWelcome,
        list_leases: Callable[[], Iterable[int]],
        on_heartbeat: Callable[[], None],
    ) -> None:
        """Starts to write something, and to extend `list_leases()`, three times in the shorter lease."""
        lease_s = min(welcome.lease_s, welcome.reply_lease_s or welcome.lease_s)
        self._list_leases, self._on_heartbeat = list_leases, on_heartbeat
        if self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._beat(lease_s / 3), name="extend leases")

    def post(self, reply: ReplyProducer) -> None:
        """Queues a reply that must be opened or has output; does nothing for any other."""
        if reply.state.must_open or reply.state.has_output:
            self._ready[reply] = None
            self._has_output.set()

    def settle(self, settlement: Settlement, replies: Iterable[ReplyProducer]) -> None:
        """Queues a settlement; it is written after the pending ends of the delivery's replies."""
        self._settlements.append((settlement, replies))
        self._has_output.set()

    def drain(self) -> None:
        """Asks the router for no more deliveries."""
        self._drain_due = True
        self._has_output.set()

    # Reports on replies.

    def receive(self, response: AttachResponse) -> None:
        """Passes the router's reports to their replies; reports on replies that are over are ignored."""
        for opened in response.opened:
            if reply := self._reply_by_number.get(opened.reply):
                reply.state.on_opened(opened)
                self._state_changed(reply)
        for ended in response.ended:
            if reply := self._reply_by_number.get(ended.reply):
                reply.state.on_ended(ended)
                self._state_changed(reply)
        for progress in response.progress:
            if reply := self._reply_by_number.get(progress.reply):
                reply.state.on_progress(progress)
                self._state_changed(reply)

    def _state_changed(self, reply: ReplyProducer) -> None:
        if reply.state.is_over or reply.state.must_open:
            self._ready.pop(reply, None)
            del self._reply_by_number[self._number_of.pop(reply)]
        self.post(reply)
        self._has_output.set()  # a settlement may have waited for the reply's end
        reply.state_changed()

    # The writer.

    async def write(self, write: Callable[[AttachRequest], Awaitable[None]]) -> None:
        """Writes the hello, then batches; each takes what was queued while the last one was written."""
        await write(AttachRequest(hello=self._hello))
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while (batch := self._next_batch()) is not None:
                await write(batch)

    def _next_batch(self) -> AttachRequest | None:
        """All queued output up to the bound of a batch, and a heartbeat if one is due; else None."""
        batch = AttachRequest(drain=self._drain_due)
        due = self._heartbeat_due or self._drain_due
        if self._heartbeat_due:
            batch.extend.extend(self._list_leases())
        self._heartbeat_due = self._drain_due = False
        room = MAX_BATCH_BYTES
        for reply in list(self._ready):
            if room <= 0:
                break
            del self._ready[reply]
            room -= self._add_reply(reply, batch, room)
        self._add_settlements(batch, room)
        return batch if due or batch.ListFields() else None

    def _add_reply(self, reply: ReplyProducer, batch: AttachRequest, room: int) -> int:
        """Adds one reply's output; returns its size."""
        state = reply.state
        if state.must_open:
            number = next(self._numbers)
            self._reply_by_number[number], self._number_of[reply] = reply, number
            batch.opens.append(state.open_request(number))
            return batch.opens[-1].ByteSize()
        number = self._number_of.get(reply, 0)
        size = 0
        deltas = state.take_deltas(room, MAX_DELTAS_PER_REPLY)
        if deltas:
            batch.deltas.append(ReplyDeltas(reply=number, deltas=deltas))
            size = batch.deltas[-1].ByteSize()
            reply.block.notify()
        end = state.take_end(number)
        if end is not None:
            batch.ends.append(end)
        self.post(reply)
        return size

    def _add_settlements(self, batch: AttachRequest, room: int) -> None:
        for _ in range(len(self._settlements)):
            settlement, replies = self._settlements[0]
            if room <= 0:
                return
            self._settlements.popleft()
            if any(reply.state.has_pending_end for reply in replies):
                self._settlements.append((settlement, replies))
                continue
            room -= settlement.ByteSize()
            batch.settlements.append(settlement)

    async def _beat(self, interval_s: float) -> None:
        while True:
            await self._clock.sleep(interval_s)
            self._on_heartbeat()
            self._heartbeat_due = True
            self._has_output.set()

    async def close(self) -> None:
        """Stops the heartbeat; the stream is over."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait({self._heartbeat})
