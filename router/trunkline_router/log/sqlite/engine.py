"""The log in one SQLite file: the default engine, with nothing to install."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ParamSpec, TypeVar

from trunkline_router.core.values.log_records import (
    Backlog,
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Page,
    PageRequest,
    PendingEntry,
    Registered,
    Registration,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
    Transaction,
)
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.batch import Head, make_batch, of_erased_logs
from trunkline_router.log.call_thread import CallThread
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.append_results import (
    answer_again,
    conclude,
    first_of_each_key,
    kept_of,
)
from trunkline_router.log.sqlite.database_file import FileLock
from trunkline_router.log.sqlite.head_cache import HeadCache
from trunkline_router.log.sqlite.idempotency_keys import RECENT_KEYS, StoredResult
from trunkline_router.log.sqlite.reader import Reader
from trunkline_router.log.sqlite.writer import Writer

_P = ParamSpec("_P")
_T = TypeVar("_T")

_HOUR_MS = 3_600_000

#: How long a thread waits for the GIL before it insists. A loop that is always busy lets go of it only for
#: the moment of each poll, too short for another thread to take it, and each such moment starts the wait
#: anew. So this must be shorter than a turn of the loop: with Python's 5 ms, commits starved for 20 s.
_GIL_WAIT_S = 0.0001


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class SqliteLog:
    """Implements `router.log.port.Log` with the standard library's sqlite3, WAL and `synchronous=FULL`.

    One thread writes and one reads, each with a connection of its own. The Python work of an append
    (numbering, serializing) is done on the event loop's thread, so that the writer thread hardly needs
    the GIL; see statements. The caller groups: a call of `append` is one transaction, one fsync.

    Where `deliver` is set, a entry's topic names the agent that the delivery is for. `message.address`
    is the caller's to set.
    """

    def __init__(
        self,
        lock: FileLock,
        writer: Writer,
        reader: Reader,
        clock: Callable[[], int],
        keep_keys_ms: int,
        cached_heads: int,
    ) -> None:
        """For `open`."""
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._keep_keys_ms = keep_keys_ms
        self._numbers = writer.numbers()
        self._heads = HeadCache(cached_heads)
        self._writer_thread = CallThread("log-writer")
        self._reader_thread = CallThread("log-reader")
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Callable[[], int] = _now_ms,
        keep_keys_ms: int = 26 * _HOUR_MS,
        cached_heads: int = 100_000,
        recent_keys: int = RECENT_KEYS,
    ) -> SqliteLog:
        """Open the log at `path`, which is made if missing; its folder must exist.

        Blocks: milliseconds, or longer where a large write-ahead log was left behind by a crash. `clock`
        gives Unix time in ms. Idempotency keys are kept for `keep_keys_ms` at least. `cached_heads`
        bounds how many logs' ends are at hand for `head`, at some 500 bytes each. `recent_keys` is the
        number of keys that are put in order together; up to twice as many are in memory, at some 160 bytes
        each.

        Lowers the process's `sys.setswitchinterval` to 0.1 ms, or the log's threads could starve.

        Raises LogUnavailable if another process has it open, if a newer version wrote it, or if it can't
        be read.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), _GIL_WAIT_S))
        path = path.resolve()
        try:
            with ExitStack() as undo:
                lock = FileLock(path)
                undo.callback(lock.release)
                writer = Writer(path, recent_keys)
                undo.callback(writer.close)
                log = cls(lock, writer, Reader(path), clock, keep_keys_ms, cached_heads)
                undo.pop_all()
                return log
        except (sqlite3.Error, OSError) as error:
            raise LogUnavailable(f"{path}: {error}") from error

    def head(self, topic: TopicKey) -> Position | None:
        """See the port."""
        self._check_open()
        head = self._heads.get(topic)
        return None if head is None else head.position

    async def append(self, transaction: Transaction) -> None:
        """See the port. A change or a read of an erased log is answered like one that is `repeat_only`."""
        asked = [pending for pending in transaction.entries if pending.repeat_only]
        entries = transaction.entries
        if asked:
            entries = [pending for pending in entries if not pending.repeat_only]
        unwritten, repeats = first_of_each_key(entries)
        topics = {pending.topic for pending in unwritten}
        now_ms = self._clock()
        try:
            heads = await self._look_up(topics.union(_topics_besides_drafts(transaction)))
            gone = of_erased_logs(unwritten, heads)
            if gone:
                asked += gone
                unwritten = [pending for pending in unwritten if pending not in gone]
            kept = await self._kept(asked)
            batch = make_batch(unwritten, transaction, heads, self._numbers, now_ms)
            used = await self._write(self._writer.commit, batch)
            if used:
                kept.update(used)
                repeats += [pending for pending in unwritten if pending.key in used]
                unwritten = [pending for pending in unwritten if pending.key not in used]
                batch = make_batch(unwritten, transaction, heads, self._numbers, now_ms)
                await self._write(self._writer.commit, batch)
        except BaseException:
            # It may yet be committed where this was cancelled.
            self._heads.forget(topics)
            raise
        self._heads.update(batch.heads)
        conclude(unwritten, batch)
        kept.update((pending.key, kept_of(pending)) for pending in unwritten if pending.key is not None)
        for pending in asked + repeats:
            answer_again(pending, kept)
        for withdrawal in transaction.withdrawn:
            withdrawal.found = (heads[withdrawal.topic].topic_id, withdrawal.seq) in batch.found

    async def _kept(self, entries: Sequence[PendingEntry]) -> dict[bytes, StoredResult]:
        """What is kept of these entries' keys."""
        keys = [pending.key for pending in entries if pending.key is not None]
        return await self._write(self._writer.kept, keys) if keys else {}

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        """See the port."""
        self._check_open()
        heads = await self._look_up(topics)
        return [heads[topic].position for topic in topics]

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        """See the port."""
        return await self._read(self._reader.pages, requests)

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """See the port."""
        return await self._read(self._reader.message, tenant, message_id)

    async def open_messages(self) -> list[StoredOpen]:
        """See the port."""
        return await self._read(self._reader.open_messages)

    async def reset(self, topic: TopicKey) -> int:
        """See the port."""
        try:
            return await self._write(self._writer.reset, topic)
        finally:
            self._heads.forget((topic,))

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """See the port."""
        return await self._read(self._reader.deliveries, tenant, agent, after, limit)

    async def backlogs(self, tenant: str) -> list[Backlog]:
        """See the port."""
        return await self._read(self._reader.backlogs, tenant)

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """See the port."""
        return await self._read(self._reader.dead_letters, tenant, agent, after, limit)

    async def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """See the port. The order is that of the former ids: what was said first is delivered first."""
        numbers = self._numbers
        old = sorted({number for number in delivery_ids if 0 < number <= numbers.delivery_id})
        first = numbers.delivery_id + 1
        numbers.delivery_id += len(old)
        return await self._write(self._writer.replay, tenant, agent, first, old)

    async def delivered(self, whose: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """See the port."""
        return await self._read(self._reader.delivered, whose)

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """See the port."""
        return await self._read(self._reader.receipts, topic, after, limit)

    async def sweep(self, now_ms: int) -> None:
        """See the port."""
        await self._write(self._writer.sweep, now_ms - self._keep_keys_ms)

    async def registered(self) -> Registered:
        """See the port."""
        return await self._read(self._reader.registered)

    async def register(self, change: Registration) -> None:
        """See the port."""
        await self._write(self._writer.register, change)

    async def erase_tenant(self, tenant: str) -> ErasedPiece:
        """See the port."""
        return await self._erase(self._writer.erase_tenant, tenant)

    async def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """See the port."""
        return await self._erase(self._writer.erase_user, tenant, user, cursor, self._clock())

    async def prune(
        self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
    ) -> ErasedPiece:
        """See the port."""
        return await self._write(self._writer.prune, tenant, limits, cursor, now_ms)

    async def close(self) -> None:
        """See the port. The file is then whole without its write-ahead log."""
        if self._closed:
            return
        self._closed = True
        # 1. Reads that were asked for are answered; the writer must close last, as it empties the WAL.
        await self._reader_thread.call(self._reader.close)
        # 2. What is being appended is committed.
        await self._writer_thread.call(self._writer.close)
        # 3. Both threads are idle, so this takes no time.
        self._reader_thread.close()
        self._writer_thread.close()
        # 4. Others may open the file.
        self._lock.release()

    async def _look_up(self, topics: Iterable[TopicKey]) -> dict[TopicKey, Head]:
        """The heads of these topics.

        Unknown ones are read on the writer thread: its answers arrive in the order of commits, so a
        cached head is never overwritten by an older one. Only a cancelled write can arrive out of order,
        and then what is read meanwhile is not cached.
        """
        heads = {topic: self._heads.get(topic) for topic in topics}
        missing = [topic for topic, head in heads.items() if head is None]
        found: dict[TopicKey, Head] = {}
        if missing:
            doubts = self._heads.doubts
            found = dict(zip(missing, await self._write(self._writer.heads, missing), strict=True))
            if self._heads.doubts == doubts:
                self._heads.update(found)
        return {topic: head or found[topic] for topic, head in heads.items()}

    async def _erase(
        self, call: Callable[_P, ErasedPiece], *args: _P.args, **kwargs: _P.kwargs
    ) -> ErasedPiece:
        try:
            piece = await self._write(call, *args, **kwargs)
        except BaseException:
            # It may yet be done where this was cancelled, and to which logs is not known.
            self._heads.forget_all()
            raise
        self._heads.forget(piece.topics)
        return piece

    async def _write(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        self._check_open()
        return await self._writer_thread.call(call, *args, **kwargs)

    async def _read(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        self._check_open()
        return await self._reader_thread.call(call, *args, **kwargs)

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed")


def _topics_besides_drafts(transaction: Transaction) -> set[TopicKey]:
    """Topics whose heads the rest of the transaction needs."""
    return {
        item.topic
        for items in (transaction.checkpoints, transaction.delivered, transaction.withdrawn)
        for item in items
    }
