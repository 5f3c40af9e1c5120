"""Runs the core: does what it asks for, and lets waiting tasks know.

Three tasks for the whole process, whatever the load: the committer, the reader and the clock; and a
pair for each stream. Nothing is done per message but by the core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import structlog
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.commits.effects import (
    ReadDelivered,
    ReadDeliveries,
    ReadHeads,
    ReadMessage,
    ReadPages,
)
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.router import RouterCore
from trunkline_router.core.tenants.api_keys import Caller, CallerKind
from trunkline_router.core.tenants.fair_call_queue import Tarpit
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.log.interface import Log, LogUnavailable

_log = structlog.get_logger()

#: How often leases, and deliveries that wait for another attempt, are looked at.
TICK_S = 0.25

#: Reads of pages done together: what they bring is in memory at a time.
PAGES_A_READ = 16


class PendingCall:
    """An RPC under way: who makes it, and for which tenant."""

    __slots__ = ("_strangers", "caller", "concerns", "home", "size", "tenant")

    def __init__(self, caller: Caller, strangers: Tarpit) -> None:
        self.caller = caller
        self._strangers = strangers
        #: The one that all of it is for; empty until that is known, and where it is for several.
        self.tenant = caller.tenant
        #: The caller's own, where it has one.
        self.home: Tenant | None = None
        #: The one whose calls it is one of, once it was found to have a right to be; None for one of several.
        self.concerns: Tenant | None = None
        #: Of its request, in bytes; 0 for one that streams.
        self.size = 0

    def rests_in(self, reason: Refused) -> Tarpit | None:
        """Where it rests before it is told that it is refused; None where it does not.

        Those rest that nothing else holds back: calls that found no turn, and calls that took none. What is
        not the caller's doing is told at once, and so are operators.
        """
        is_held_back = self.concerns is not None or reason.entry.retryable
        if self.caller.kind is CallerKind.OPERATOR or (
            is_held_back and reason.entry is not catalogue.RATE_LIMITED
        ):
            return None
        tenant = self.concerns or self.home
        return tenant.resting if tenant is not None else self._strangers


#: The RPC that is answered here, as the guard has let it in.
CALL: ContextVar[PendingCall] = ContextVar("call")
UNGUARDED = PendingCall(Caller(CallerKind.ANYBODY), Tarpit())


class AttachedStream:
    """What the shell knows of one peer's open stream."""

    __slots__ = ("beat", "call", "ended", "is_over", "is_writing", "wake")

    def __init__(self, call: PendingCall) -> None:
        self.call = call
        #: Set when something is to be written; cleared by the stream's writer.
        self.wake = asyncio.Event()
        #: A sign of life is due.
        self.beat = False
        #: A write is under way; none is to be begun any more.
        self.is_writing = False
        self.is_over = False
        #: Completed by the shell when the stream is to end, with the reason.
        self.ended: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()

    def end(self, reason: Refused) -> None:
        """End the stream; only the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)
            self.wake.set()


class RouterRuntime:
    """The tasks around one core and one log. `run` returns only by being cancelled."""

    def __init__(self, core: RouterCore, log: Log, checkpoint_interval_s: float) -> None:
        self.core = core
        self.log = log
        self._checkpoint_interval_s = checkpoint_interval_s
        #: By peer, or by whatever stands for the caller of an RPC that streams.
        self.streams: dict[object, AttachedStream] = {}
        #: Reads that wait until the outbox they will fill has room.
        self._put_off: list[ReadPages] = []
        self._to_commit = asyncio.Event()
        self._to_read = asyncio.Event()
        self._changed = asyncio.Event()
        # append and reset are for one caller at a time.
        self._writing = asyncio.Lock()
        self._log_failed = False

    # For those who call the core

    def settle(self) -> None:
        """Do what the core asks for; to be called after every call of it, before the next await."""
        core = self.core
        core.settle(time.monotonic())
        for peer in core.mail:
            stream = self.streams.get(peer)
            if stream is None:
                continue
            if isinstance(peer, AttachedWorker) and not peer.is_given_work:
                # It only learns what became of its work, which others are waiting for more than it is.
                asyncio.get_running_loop().call_soon(stream.wake.set)
            else:
                stream.wake.set()
        core.mail.clear()
        if core.reads:
            self._to_read.set()
        if core.commit_queue:
            self._to_commit.set()

    def opened(self, peer: object) -> AttachedStream:
        """A stream for this peer is open; to be called where the RPC is answered."""
        stream = self.streams[peer] = AttachedStream(CALL.get(UNGUARDED))
        return stream

    def drained(self, link: Link) -> None:
        """A batch was written to a link; whoever was held up by it may go on."""
        if self._put_off and (link.outbox.has_room or link.lost):
            self.core.reads += self._put_off
            self._put_off.clear()
            self.settle()
        if self.core.link_drained(link):
            self._changed.set()
            self.settle()

    async def room(self, blocked_by: set[Link]) -> None:
        """Wait until a source that has filled these outboxes, or the commit queue, may send more."""
        while not self.core.may_send(blocked_by):
            self._changed.clear()
            await self._changed.wait()

    async def exclusively(self, write: Callable[[], Awaitable[Any]]) -> Any:
        """Do something with the log that may not run beside a commit."""
        async with self._writing:
            return await write()

    # Tasks

    async def load(self) -> None:
        """Read what is declared, and what was open; to be done before any peer is let in."""
        registered = await self.log.registered()
        self.core.tenancy.load(registered)
        self.core.api_keys.load(registered.api_keys)
        self.core.open_messages.load(await self.log.open_messages(), time.monotonic())

    async def run(self) -> None:
        """Run the tasks."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit())
            tasks.create_task(self._read())
            tasks.create_task(self._tick())

    async def flush(self) -> None:
        """Wait until nothing is left to be committed."""
        while self.core.commit_queue or self._writing.locked():
            self._changed.clear()
            await self._changed.wait()

    async def _commit(self) -> None:
        core = self.core
        while True:
            await self._to_commit.wait()
            self._to_commit.clear()
            while core.commit_queue:
                # Taken within the lock: what a reset forbids must not have left the commit queue before it.
                async with self._writing:
                    transaction, writes = core.commit_queue.take()
                    try:
                        await self.log.append(transaction)
                    except LogUnavailable as error:
                        self.report_log(error)
                        core.not_committed(transaction, writes)
                    else:
                        self.report_log(None)
                        core.committed(transaction, writes)
                self._changed.set()
                self.settle()

    def report_log(self, error: LogUnavailable | None) -> None:
        """Say when the log fails and when it works again, not how often in between."""
        if error is not None and not self._log_failed:
            _log.error(
                "the log refuses writes; clients and backends are told LOG_UNAVAILABLE", reason=str(error)
            )
        elif error is None and self._log_failed:
            _log.info("the log takes writes again")
        self._log_failed = error is not None

    async def _read(self) -> None:
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            reads = self.core.reads[:]
            self.core.reads.clear()
            await self._read_heads([read for read in reads if isinstance(read, ReadHeads)])
            await self._read_delivered([read for read in reads if isinstance(read, ReadDelivered)])
            for read in reads:
                if isinstance(read, ReadDeliveries):
                    await self._read_deliveries(read)
                elif isinstance(read, ReadMessage):
                    await self._read_message(read)
            pages = [read for read in reads if isinstance(read, ReadPages)]
            for start in range(0, len(pages), PAGES_A_READ):
                await self._read_pages(pages[start : start + PAGES_A_READ])

    async def _read_heads(self, reads: list[ReadHeads]) -> None:
        if not reads:
            return
        keys = [key for read in reads for key in read.topics]
        try:
            heads = iter(await self.log.heads(keys))
        except LogUnavailable:
            self._failed(reads)
            return
        for read in reads:
            read.done([next(heads) for _ in read.topics])
        self.settle()

    async def _read_delivered(self, reads: list[ReadDelivered]) -> None:
        if not reads:
            return
        try:
            positions = iter(await self.log.delivered([each for read in reads for each in read.whose]))
        except LogUnavailable:
            self._failed(reads)
            return
        for read in reads:
            read.done([next(positions) for _ in read.whose])
        self.settle()

    async def _read_pages(self, wanted: list[ReadPages]) -> None:
        reads: list[ReadPages] = []
        for read in wanted:
            full = read.link is not None and read.link.outbox.is_full and not read.link.lost
            (self._put_off if full else reads).append(read)
        if not reads:
            return
        requests = [request for read in reads for request in read.requests]
        try:
            pages = iter(await self.log.read(requests))
        except LogUnavailable:
            self._failed(reads)
            return
        for read in reads:
            read.done([next(pages) for _ in read.requests])
        self.settle()

    async def _read_deliveries(self, read: ReadDeliveries) -> None:
        try:
            read.done(await self.log.deliveries(read.tenant, read.agent, read.after, read.limit))
        except LogUnavailable:
            read.failed()
        self.settle()

    async def _read_message(self, read: ReadMessage) -> None:
        try:
            stored = await self.log.message(read.tenant, read.message_id)
        except LogUnavailable:
            read.failed()
        else:
            read.done(Message.FromString(stored) if stored is not None else None)
        self.settle()

    def _failed(self, reads: list[Any]) -> None:
        for read in reads:
            read.failed()
        self.settle()

    async def _tick(self) -> None:
        core = self.core
        beat_s = min(core.lease_s, core.delivery_lease_s, core.reply_lease_s) / 3
        now = time.monotonic()
        beat_due = now + beat_s
        while True:
            await asyncio.sleep(min(TICK_S, beat_s, self._checkpoint_interval_s))
            now = time.monotonic()
            for peer, reason in core.tick(now):
                if stream := self.streams.get(peer):
                    stream.end(reason)
            if now >= beat_due:
                beat_due = now + beat_s
                self._beat()
            core.checkpoint(now - self._checkpoint_interval_s)
            self.settle()
            self._changed.set()

    def _beat(self) -> None:
        for peer, stream in self.streams.items():
            if isinstance(peer, Link | AttachedWorker):
                stream.beat = True
                stream.wake.set()

    def end_streams_of(self, *, key_id: str = "", tenant: str = "", reason: Refused) -> None:
        """End what was opened with an API key, or for a tenant alone; edges' links go on."""
        for stream in self.streams.values():
            call = stream.call
            if (key_id and call.caller.key_id == key_id) or (tenant and call.tenant == tenant):
                stream.end(reason)

    def end_streams(self) -> None:
        """The router stops: every stream ends, and its peer comes back later or elsewhere."""
        for stream in self.streams.values():
            stream.end(catalogue.ROUTER_UNAVAILABLE.refused())
