"""Runs the core: feeds it events, applies its effects and wakes the streams that have output.

The process has three tasks besides the streams' own: the committer, the log reader and the clock. Each
stream adds a reader and a writer. All per-message work happens in the core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import structlog
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_router.active_call import ACTIVE_CALL, UNCHECKED_CALL, ActiveCall
from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.router import RouterCore
from trunkline_router.core.values.log_records import Fork
from trunkline_router.log.interface import Log, LogUnavailable
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log_reads import LogReads
from trunkline_router.media.media_store import MediaStore

_log = structlog.get_logger()

#: Interval at which leases and delayed redeliveries are checked.
TICK_S = 0.25
#: Time for which calls wait while the runtime is suspended.
SUSPENSION_PATIENCE_S = 3.0

R = TypeVar("R")


class PeerStream:
    """The open stream of one peer, as the runtime sees it."""

    __slots__ = ("call", "ended", "heartbeat_due", "is_closing", "is_held", "is_writing", "wake")

    def __init__(self, call: ActiveCall, is_held: Callable[[], bool]) -> None:
        self.call = call
        #: Whether nothing but heartbeats may be written now; `wake` is set afterwards.
        self.is_held = is_held
        #: Set when there is something to write; cleared by the stream's writer.
        self.wake = asyncio.Event()
        self.heartbeat_due = False
        #: A write is in progress.
        self.is_writing = False
        #: No further write may start.
        self.is_closing = False
        #: Completed with the reason when the runtime ends the stream.
        self.ended: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()

    def end(self, reason: Refused) -> None:
        """End the stream; only the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(reason)
            self.wake.set()


class _Step:
    """Context of one or more calls of the core; applies their effects on exit."""

    __slots__ = ("_apply", "_core")

    def __init__(self, core: RouterCore, apply: Callable[[], None]) -> None:
        self._core = core
        self._apply = apply

    def __enter__(self) -> RouterCore:
        return self._core

    def __exit__(self, *_: object) -> None:
        self._apply()


class RouterRuntime:
    """The tasks around one core and one log. `run` returns only when cancelled.

    Every call that gives the core an event is made within a `step`, with no await inside it.

    While the lease of the log is not valid, the runtime is suspended: another router may own the log, so that
    what this one knows may be out of date. Streams stay and events still reach the core, but nothing is sent,
    except heartbeats. What the core has for its peers goes out once the lease is valid again.
    """

    def __init__(
        self, core: RouterCore, owned: OwnedLog, media: MediaStore, checkpoint_interval_s: float
    ) -> None:
        #: For reading; events go through `step`.
        self.core = core
        self.log: Log = owned.log
        self.media = media
        #: Whether nothing may be sent now.
        self.is_suspended: Callable[[], bool] = lambda: not owned.lease.is_valid()
        #: Set when the runtime notices that it is suspended, or no longer is.
        self.suspension_changed = asyncio.Event()
        self._was_suspended = False
        self._checkpoint_interval_s = checkpoint_interval_s
        #: By link, worker, watcher, or the object that stands for another stream's caller.
        self.streams: dict[object, PeerStream] = {}
        self._step = _Step(core, self._apply)
        self._reads = LogReads(core, owned.log, self.step)
        self._commit_requested = asyncio.Event()
        #: Set when waiting callers should check again whether they may continue.
        self._progress = asyncio.Event()
        #: Held during each write to the log that must not overlap another.
        self._write_lock = asyncio.Lock()
        #: Writes with the core's part of them, each in a task of its own, until they end.
        self._writes: set[asyncio.Task[Any]] = set()
        self._log_failed = False

    # The core

    def step(self) -> AbstractContextManager[RouterCore]:
        """Enter a step: `with runtime.step() as core`. Effects are applied on exit, also on errors."""
        return self._step

    def _apply(self) -> None:
        """Apply the effects of a step: hand out deliveries, wake writers, request reads and commits."""
        core = self.core
        core.flush(time.monotonic())
        if not self._notice_suspension():
            self._wake_writers()
        if core.effects.reads:
            self._reads.wake()
        if core.effects.commit_queue:
            self._commit_requested.set()

    def _wake_writers(self) -> None:
        writable = self.core.effects.writable_peers
        for peer in writable:
            stream = self.streams.get(peer)
            if stream is None:
                continue
            if isinstance(peer, AttachedWorker) and not peer.has_deliveries:
                # Only results of what it sent: others wait for their output more urgently.
                asyncio.get_running_loop().call_soon(stream.wake.set)
            else:
                stream.wake.set()
        writable.clear()

    def _notice_suspension(self) -> bool:
        """Return whether the runtime is suspended. What is held back wakes when it no longer is."""
        is_suspended = self.is_suspended()
        if is_suspended is not self._was_suspended:
            self._change_suspension(is_suspended)
        return is_suspended

    def _change_suspension(self, is_suspended: bool) -> None:
        self._was_suspended = is_suspended
        self.suspension_changed.set()
        if is_suspended:
            _log.warning(
                "it is not certain that this router still owns the log; nothing is answered meanwhile"
            )
        else:
            _log.info("this router owns the log as before; answering again")
            for stream in self.streams.values():
                stream.wake.set()

    async def wait_until_owned(self) -> None:
        """Wait while suspended. Raises Refused LOG_UNAVAILABLE if that lasts."""
        if self.is_suspended():
            try:
                async with asyncio.timeout(SUSPENSION_PATIENCE_S):
                    while self.is_suspended():
                        self._progress.clear()
                        await self._progress.wait()
            except TimeoutError:
                raise catalogue.LOG_UNAVAILABLE.refused() from None

    async def write(
        self, operation: Callable[[], Awaitable[R]], applied: Callable[[R], object] = lambda _: None
    ) -> R:
        """Run a log operation that must not overlap a commit, then let the core apply its result.

        `applied` runs in a step, before anything else is committed, also if the caller is cancelled
        meanwhile. If the operation raises, `applied` is not called.
        """

        async def write_and_apply() -> R:
            result = await operation()
            with self.step():
                applied(result)
            return result

        return await self.run_to_end(self._write_lock, write_and_apply)

    async def run_to_end(self, lock: asyncio.Lock, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Take the lock, then run the work to its end even if the caller is cancelled meanwhile.

        gRPC cancels the handler of a caller that is gone, but the log does what it has begun: the core must
        apply it. A call cancelled while it waits for the lock does nothing. `flush` waits for the work;
        exceptions that no caller awaits any longer are logged.
        """
        await lock.acquire()
        task = asyncio.create_task(work())
        self._writes.add(task)

        def ended(_: asyncio.Task[R]) -> None:
            lock.release()
            self._writes.discard(task)
            self._progress.set()

        task.add_done_callback(ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._report_abandoned)
            raise

    def _report_abandoned(self, write: asyncio.Task[Any]) -> None:
        """Log the exception of a write whose caller is gone."""
        error = None if write.cancelled() else write.exception()
        if isinstance(error, LogUnavailable):
            self.report_log(error)
        elif error is not None and not isinstance(error, Refused):
            _log.error("a write failed after its caller had gone", exc_info=error)

    # Streams

    def open_stream(self, peer: object) -> PeerStream:
        """Register a stream for this peer; called by the task that serves the RPC."""
        stream = self.streams[peer] = PeerStream(ACTIVE_CALL.get(UNCHECKED_CALL), self._notice_suspension)
        return stream

    def close_stream(self, peer: object) -> None:
        """Forget a peer's stream."""
        del self.streams[peer]

    def end_streams_of(self, *, key_id: str = "", tenant: str = "", reason: Refused) -> None:
        """End the streams opened with an API key, or those of one tenant alone; links stay."""
        for stream in self.streams.values():
            call = stream.call
            if (key_id and call.caller.key_id == key_id) or (tenant and call.tenant == tenant):
                stream.end(reason)

    def end_streams(self) -> None:
        """End every stream; its peer reconnects later or elsewhere."""
        for stream in self.streams.values():
            stream.end(catalogue.ROUTER_UNAVAILABLE.refused())

    # LinkBackpressure

    def link_drained(self, link: Link) -> None:
        """A batch was written to a link: resume the reads and senders that its outbox held up."""
        with self.step() as core:
            self._reads.link_drained(link)
            if core.link_drained(link):
                self._progress.set()

    async def wait_for_room(self, blocked_by: set[Link]) -> None:
        """Wait until a sender that filled these outboxes, or the commit queue, may continue."""
        while not self.core.may_send(blocked_by):
            self._progress.clear()
            await self._progress.wait()

    # Tasks

    async def load(self) -> None:
        """Load tenants, API keys and open messages from the log; call before any peer is admitted."""
        registered = await self.log.registered()
        self.core.tenant_table.load(registered)
        self.core.api_keys.load(registered.api_keys)
        self.core.open_messages.load(await self.log.open_messages(), time.monotonic())

    async def run(self) -> None:
        """Run the committer, the log reader and the clock."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit())
            tasks.create_task(self._reads.run())
            tasks.create_task(self._tick())

    async def flush(self) -> None:
        """Wait until the commit queue is empty and no write is in progress; `run` must be running."""
        while self.core.effects.commit_queue or self._write_lock.locked() or self._writes:
            self._progress.clear()
            await self._progress.wait()

    async def finish_writes(self) -> None:
        """Wait for the writes in progress, after `run` and all callers were cancelled."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def _commit(self) -> None:
        core = self.core
        while True:
            await self._commit_requested.wait()
            self._commit_requested.clear()
            while core.effects.commit_queue:
                # Taken under the lock: a reset removes entries from the queue, not from a transaction.
                async with self._write_lock:
                    transaction, writes = core.effects.commit_queue.take()
                    error: LogUnavailable | None = None
                    try:
                        await self.log.append(transaction)
                    except LogUnavailable as raised:
                        error = raised
                    self.report_log(error)
                    if transaction.forks and error is None:
                        _report_forks(transaction.forks)
                    with self.step():
                        (core.committed if error is None else core.commit_failed)(transaction, writes)
                self._progress.set()

    def report_log(self, error: LogUnavailable | None) -> None:
        """Log one line when the log starts to fail and one when it recovers."""
        if error is not None and not self._log_failed:
            _log.error("log rejects writes; callers get LOG_UNAVAILABLE", reason=str(error))
        elif error is None and self._log_failed:
            _log.info("log accepts writes again")
        self._log_failed = error is not None

    async def _tick(self) -> None:
        core = self.core
        heartbeat_s = min(core.lease_s, core.delivery_lease_s, core.reply_lease_s) / 3
        now = time.monotonic()
        heartbeat_due = now + heartbeat_s
        while True:
            await asyncio.sleep(min(TICK_S, heartbeat_s, self._checkpoint_interval_s))
            now = time.monotonic()
            with self.step():
                for peer, reason in core.tick(now):
                    if stream := self.streams.get(peer):
                        stream.end(reason)
                if now >= heartbeat_due:
                    heartbeat_due = now + heartbeat_s
                    self._request_heartbeats()
                core.checkpoint(now - self._checkpoint_interval_s)
            self._progress.set()

    def _request_heartbeats(self) -> None:
        for peer, stream in self.streams.items():
            if isinstance(peer, Link | AttachedWorker):
                stream.heartbeat_due = True
                stream.wake.set()


def _report_forks(forks: Sequence[Fork]) -> None:
    """Log what was noticed: positions beyond the ends of logs."""
    for fork in forks:
        if fork.position is not None:
            _log.error(
                "a log has lost entries that were acknowledged: it begins a new epoch, and its clients get"
                " `recovered: false`; restart the router to begin new epochs of all logs",
                tenant=fork.topic[0],
                epoch=fork.epoch,
                seq=fork.position.seq,
                seen_by="an edge" if fork.is_proved else "a client",
            )
