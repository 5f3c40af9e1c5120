"""One stream between a worker and a router: what is written on it, and what is said about replies."""

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
from trunkline_client.streamed_reply import StreamedReply

#: A batch is closed once it is this large.
MAX_BATCH_BYTES = 1 << 20
#: Deltas of one reply in one batch, so that each of many has its share of it.
MAX_DELTAS_EACH = 256


class WorkerStream:
    """The mail of one stream; gone with it, while the work goes on.

    Its queues hold what the worker's replies and deliveries leave there, which are bounded themselves.
    """

    def __init__(self, hello: AttachHello, clock: Clock) -> None:
        self._hello = hello
        self._clock = clock
        self._numbers = count(1)
        self._by_number: dict[int, StreamedReply] = {}
        self._number_of: dict[StreamedReply, int] = {}
        #: Replies with something to write, in turn.
        self._busy: dict[StreamedReply, None] = {}
        self._settled: deque[tuple[Settlement, Iterable[StreamedReply]]] = deque()
        self._has_mail = asyncio.Event()
        self._sign_due = False
        self._drain_due = False
        self._held: Callable[[], Iterable[int]] = tuple
        self._on_beat: Callable[[], None] = lambda: None
        self._pulse: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<WorkerStream {len(self._busy)} replies to write, {len(self._settled)} settlements unwritten>"
        )

    # What the work posts.

    def keep_alive(
        self, welcome: AttachWelcome, held: Callable[[], Iterable[int]], on_beat: Callable[[], None]
    ) -> None:
        """From here on says something, and extends what is `held`, three times in the shorter lease."""
        lease_s = min(welcome.lease_s, welcome.reply_lease_s or welcome.lease_s)
        self._held, self._on_beat = held, on_beat
        if self._pulse is None:
            self._pulse = asyncio.create_task(self._beat(lease_s / 3), name="keep the lease")

    def post(self, reply: StreamedReply) -> None:
        """A reply is to be opened, or has something to write."""
        if reply.line.must_open or reply.line.has_mail:
            self._busy[reply] = None
            self._has_mail.set()

    def settle(self, settlement: Settlement, replies: Iterable[StreamedReply]) -> None:
        """A delivery is done; written after what its replies still have to say."""
        self._settled.append((settlement, replies))
        self._has_mail.set()

    def drain(self) -> None:
        """The worker takes no more."""
        self._drain_due = True
        self._has_mail.set()

    # What the router says about replies.

    def take(self, response: AttachResponse) -> None:
        """Passes on what is said about replies; of replies that are over nothing is of interest."""
        for opened in response.opened:
            if reply := self._by_number.get(opened.reply):
                reply.line.on_opened(opened)
                self._told(reply)
        for ended in response.ended:
            if reply := self._by_number.get(ended.reply):
                reply.line.on_ended(ended)
                self._told(reply)
        for progress in response.progress:
            if reply := self._by_number.get(progress.reply):
                reply.line.on_progress(progress)
                self._told(reply)

    def _told(self, reply: StreamedReply) -> None:
        if reply.line.is_over or reply.line.must_open:
            self._busy.pop(reply, None)
            del self._by_number[self._number_of.pop(reply)]
        self.post(reply)
        self._has_mail.set()  # a settlement may have waited for it
        reply.changed()

    # Writing.

    async def write(self, write: Callable[[AttachRequest], Awaitable[None]]) -> None:
        """The only writer: each batch is all that came together while the last one was written."""
        await write(AttachRequest(hello=self._hello))
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            while (batch := self._next_batch()) is not None:
                await write(batch)

    def _next_batch(self) -> AttachRequest | None:
        """All that waits, up to the bound of a batch, and the sign of life if it is due; else None."""
        batch = AttachRequest(drain=self._drain_due)
        due = self._sign_due or self._drain_due
        if self._sign_due:
            batch.extend.extend(self._held())
        self._sign_due = self._drain_due = False
        room = MAX_BATCH_BYTES
        for reply in list(self._busy):
            if room <= 0:
                break
            del self._busy[reply]
            room -= self._say(reply, batch, room)
        self._add_settlements(batch, room)
        return batch if due or batch.ListFields() else None

    def _say(self, reply: StreamedReply, batch: AttachRequest, room: int) -> int:
        """Adds what one reply has to say; returns its size."""
        line = reply.line
        if line.must_open:
            number = next(self._numbers)
            self._by_number[number], self._number_of[reply] = reply, number
            batch.opens.append(line.open(number))
            return batch.opens[-1].ByteSize()
        number = self._number_of.get(reply, 0)
        size = 0
        deltas = line.deltas(room, MAX_DELTAS_EACH)
        if deltas:
            batch.deltas.append(ReplyDeltas(reply=number, deltas=deltas))
            size = batch.deltas[-1].ByteSize()
            reply.stirred()
        end = line.end(number)
        if end is not None:
            batch.ends.append(end)
        self.post(reply)
        return size

    def _add_settlements(self, batch: AttachRequest, room: int) -> None:
        for _ in range(len(self._settled)):
            settlement, replies = self._settled[0]
            if room <= 0:
                return
            self._settled.popleft()
            if any(reply.line.owes_end for reply in replies):
                self._settled.append((settlement, replies))
                continue
            room -= settlement.ByteSize()
            batch.settlements.append(settlement)

    async def _beat(self, interval_s: float) -> None:
        while True:
            await self._clock.sleep(interval_s)
            self._on_beat()
            self._sign_due = True
            self._has_mail.set()

    async def close(self) -> None:
        """The stream is over."""
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.wait({self._pulse})
