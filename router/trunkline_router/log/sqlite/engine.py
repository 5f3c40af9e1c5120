"""The log in one SQLite file: the default engine, with nothing to install."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from trunkline_router.core.values.log_records import (
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Page,
    PageRequest,
    Transaction,
)
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Backlog,
    ExpiredPage,
    Registered,
    Registration,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.append_results import KEEP_KEYS_MS, StoredResult
from trunkline_router.log.appender import Appender
from trunkline_router.log.batch import Batch, Head
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.encryption import Encryption
from trunkline_router.log.head_cache import CACHED_HEADS
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.call_thread import CallThread
from trunkline_router.log.sqlite.database_file import FileLock
from trunkline_router.log.sqlite.idempotency_keys import RECENT_KEYS
from trunkline_router.log.sqlite.reader import Reader
from trunkline_router.log.sqlite.verification import SQLITE_ERRORS
from trunkline_router.log.sqlite.writer import Writer
from trunkline_router.log.stored_values import StoredValues

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Time that a thread waits for the GIL before it forces a switch. A busy event loop releases the GIL only
#: for the moment of each poll, too short for another thread to take it, and each release restarts the wait.
#: It must therefore be shorter than an iteration of the loop: with Python's 5 ms, commits starved for 20 s.
_GIL_WAIT_S = 0.0001


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class SqliteLog:
    """Implements Log with the standard library's sqlite3, WAL and `synchronous=FULL`.

    One thread writes and one reads, each with its own connection. The Python work of an append (numbering,
    serialising) runs on the event loop's thread, so that the writer thread hardly needs the GIL; see
    statements. The caller groups: each `append` is one transaction and one fsync.

    If `deliver` is set, an entry's topic names the agent of the delivery. The caller sets `message.address`.
    """

    def __init__(
        self,
        lock: FileLock,
        writer: Writer,
        reader: Reader,
        clock: Callable[[], int],
        encryption: Encryption,
        keep_keys_ms: int,
        cached_heads: int,
    ) -> None:
        """Use `open`."""
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._keep_keys_ms = keep_keys_ms
        self._writer_thread = CallThread("log-writer")
        self._reader_thread = CallThread("log-reader")
        self._closed = False
        self._encryption = encryption
        store = _WriterStore(writer, self._write)
        self._appender = Appender(store, writer.counters(), clock, encryption.is_same_content, cached_heads)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        data_keys: DataKeys | None = None,
        clock: Callable[[], int] = _now_ms,
        keep_keys_ms: int = KEEP_KEYS_MS,
        cached_heads: int = CACHED_HEADS,
        recent_keys: int = RECENT_KEYS,
    ) -> SqliteLog:
        """Open the log at `path`; the file is created if missing, its folder must exist.

        Blocks for milliseconds, longer if a crash left a large write-ahead log. `clock` returns Unix time
        in ms. Idempotency keys are kept for at least `keep_keys_ms`. `cached_heads` bounds the heads in
        memory, about 500 bytes each. `recent_keys` keys move to their final table together; up to twice as
        many are in memory, about 160 bytes each.

        Lowers the process's `sys.setswitchinterval` to 0.1 ms, else the log's threads could starve.

        With `data_keys`, tenants' settings are encrypted, and the messages of tenants that want it.

        Raises LogUnavailable if another process has the file open, a newer version wrote it, or it cannot
        be read; DataKeyError if the file is encrypted with a key that is not among `data_keys`.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), _GIL_WAIT_S))
        path = path.resolve()
        try:
            with ExitStack() as undo:
                lock = FileLock(path)
                undo.callback(lock.release)
                encryption = Encryption(data_keys)
                values = StoredValues(encryption)
                writer = Writer(path, recent_keys, values, encryption, clock)
                undo.callback(writer.release)
                writer.open_keys()
                reader = Reader(path, values, encryption)
                log = cls(lock, writer, reader, clock, encryption, keep_keys_ms, cached_heads)
                undo.pop_all()
                return log
        except (*SQLITE_ERRORS, OSError) as error:
            raise LogUnavailable(f"{path}: {error}") from error

    @property
    def can_encrypt(self) -> bool:
        """See Log."""
        return self._encryption.data_keys is not None

    async def use_data_keys(self, data_keys: DataKeys) -> int:
        """See Log."""
        return await self._write(self._writer.rewrap, data_keys)

    def head(self, topic: TopicKey) -> Position | None:
        """See Log."""
        self._check_open()
        return self._appender.head(topic)

    async def append(self, transaction: Transaction) -> None:
        """See Log."""
        await self._appender.append(transaction)

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        """See Log."""
        self._check_open()
        heads = await self._appender.look_up(topics)
        return [heads[topic].position for topic in topics]

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        """See Log."""
        return await self._read(self._reader.pages, requests)

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """See Log."""
        return await self._read(self._reader.message, tenant, message_id)

    async def open_messages(self) -> list[StoredOpen]:
        """See Log."""
        return await self._read(self._reader.open_messages)

    async def reset(self, topic: TopicKey) -> int:
        """See Log."""
        try:
            return await self._write(self._writer.reset, topic)
        finally:
            self._appender.cached_heads.invalidate((topic,))

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """See Log."""
        return await self._read(self._reader.deliveries, tenant, agent, after, limit)

    async def backlogs(self, tenant: str) -> list[Backlog]:
        """See Log."""
        return await self._read(self._reader.backlogs, tenant, self._clock())

    async def count_waiting(self, tenant: str, agent: str) -> int:
        """See Log."""
        return await self._read(self._reader.count_waiting, tenant, agent, self._clock())

    async def expired(self, after: int, limit: int) -> ExpiredPage:
        """See Log."""
        return await self._read(self._reader.expired, after, limit, self._clock())

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """See Log."""
        return await self._read(self._reader.dead_letters, tenant, agent, after, limit)

    async def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """See Log. Replayed in the order of the former ids, which is that of the messages."""
        counters = self._appender.counters
        old = sorted({number for number in delivery_ids if 0 < number <= counters.delivery_id})
        first = counters.delivery_id + 1
        counters.delivery_id += len(old)
        return await self._write(self._writer.replay, tenant, agent, first, old)

    async def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """See Log."""
        return await self._read(self._reader.delivered, users)

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """See Log."""
        return await self._read(self._reader.receipts, topic, after, limit)

    async def sweep(self, now_ms: int) -> None:
        """See Log."""
        await self._write(self._writer.sweep, now_ms - self._keep_keys_ms)

    async def registered(self) -> Registered:
        """See Log."""
        return await self._read(self._reader.registered)

    async def register(self, change: Registration) -> None:
        """See Log."""
        await self._write(self._writer.register, change)

    async def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """See Log."""
        return await self._read(self._reader.audit, query)

    async def erase_tenant(self, tenant: str) -> ErasedPiece:
        """See Log."""
        return await self._erase(self._writer.erase_tenant, tenant)

    async def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """See Log."""
        return await self._erase(self._writer.erase_user, tenant, user, cursor, self._clock())

    async def prune(
        self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
    ) -> ErasedPiece:
        """See Log."""
        return await self._write(self._writer.prune, tenant, limits, cursor, now_ms)

    async def close(self) -> None:
        """See Log. Afterwards the file is complete without its write-ahead log."""
        if self._closed:
            return
        self._closed = True
        # 1. Finish pending reads. The writer closes last, because it empties the WAL.
        await self._reader_thread.call(self._reader.close)
        # 2. Finish pending writes.
        await self._writer_thread.call(self._writer.release)
        # 3. Both threads are idle, so this does not block.
        self._reader_thread.close()
        self._writer_thread.close()
        # 4. Let others open the file.
        self._lock.release()

    async def _erase(
        self, call: Callable[_P, ErasedPiece], *args: _P.args, **kwargs: _P.kwargs
    ) -> ErasedPiece:
        heads = self._appender.cached_heads
        try:
            piece = await self._write(call, *args, **kwargs)
        except BaseException:
            # A cancelled erasure may still succeed, for logs that are not known here.
            heads.invalidate_all()
            raise
        heads.invalidate(piece.topics)
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


class _WriterStore:
    """Implements BatchStore by calls of the writer on its thread, which answers in the order of commits."""

    def __init__(self, writer: Writer, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._writer = writer
        self._call = call

    async def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """See BatchStore."""
        heads: list[Head] = await self._call(self._writer.heads, topics)
        return heads

    async def results(self, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
        """See BatchStore."""
        results: dict[bytes, StoredResult] = await self._call(self._writer.results, keys)
        return results

    async def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """See BatchStore."""
        used: dict[bytes, StoredResult] = await self._call(self._writer.commit, batch)
        return used
