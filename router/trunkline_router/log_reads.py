"""Executes the reads that the core asks of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.commits.effects import (
    CountWaiting,
    ReadDelivered,
    ReadDeliveries,
    ReadHeads,
    ReadMessage,
    ReadPages,
)
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.router import RouterCore
from trunkline_router.log.interface import Log, LogDamaged, LogUnavailable

#: Page reads executed together; bounds the pages in memory at a time.
PAGE_READS_PER_BATCH = 16

R = TypeVar("R")


def refusal_of(error: LogUnavailable) -> Refused:
    """Return the refusal for an operation that the log could not perform."""
    entry = catalogue.DATA_DAMAGED if isinstance(error, LogDamaged) else catalogue.LOG_UNAVAILABLE
    return entry.refused()


class LogReads:
    """Runs the core's reads one batch after the other, and completes each in a step of the core.

    A read whose result goes to a full outbox is deferred until that outbox has room.
    """

    def __init__(
        self, core: RouterCore, log: Log, step: Callable[[], AbstractContextManager[RouterCore]]
    ) -> None:
        self._core = core
        self._log = log
        self._step = step
        self._requested = asyncio.Event()
        self._deferred: list[ReadPages] = []

    def wake(self) -> None:
        """Run the reads that are in the core now."""
        self._requested.set()

    def link_drained(self, link: Link) -> None:
        """Resume deferred reads if the link has room again or is gone. Called within a step."""
        if self._deferred and (link.outbox.has_room or link.is_lost):
            self._core.effects.reads += self._deferred
            self._deferred.clear()

    async def run(self) -> None:
        """Execute reads until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            reads = self._core.effects.reads[:]
            self._core.effects.reads.clear()
            await self._read_heads([read for read in reads if isinstance(read, ReadHeads)])
            await self._read_delivered([read for read in reads if isinstance(read, ReadDelivered)])
            for read in reads:
                if isinstance(read, ReadDeliveries):
                    await self._read_deliveries(read)
                elif isinstance(read, CountWaiting):
                    await self._count_waiting(read)
                elif isinstance(read, ReadMessage):
                    await self._read_message(read)
            pages = [read for read in reads if isinstance(read, ReadPages)]
            for start in range(0, len(pages), PAGE_READS_PER_BATCH):
                await self._read_pages(pages[start : start + PAGE_READS_PER_BATCH])

    async def _read_heads(self, reads: list[ReadHeads]) -> None:
        if not reads:
            return
        try:
            heads = await self._log.heads([topic for read in reads for topic in read.topics])
        except LogUnavailable:
            self._fail(reads)
        else:
            self._complete(reads, [len(read.topics) for read in reads], heads)

    async def _read_delivered(self, reads: list[ReadDelivered]) -> None:
        if not reads:
            return
        try:
            positions = await self._log.delivered([each for read in reads for each in read.users])
        except LogUnavailable:
            self._fail(reads)
        else:
            self._complete(reads, [len(read.users) for read in reads], positions)

    async def _read_pages(self, wanted: list[ReadPages]) -> None:
        reads: list[ReadPages] = []
        for read in wanted:
            is_blocked = read.link is not None and read.link.outbox.is_full and not read.link.is_lost
            (self._deferred if is_blocked else reads).append(read)
        if not reads:
            return
        try:
            pages = await self._log.read([request for read in reads for request in read.requests])
        except LogDamaged:
            if len(reads) == 1:
                self._fail(reads)
                return
            # One that meets the damage must not fail the others.
            for read in reads:
                await self._read_pages([read])
        except LogUnavailable:
            self._fail(reads)
        else:
            self._complete(reads, [len(read.requests) for read in reads], pages)

    async def _read_deliveries(self, read: ReadDeliveries) -> None:
        try:
            deliveries = await self._log.deliveries(read.tenant, read.agent, read.after, read.limit)
        except LogUnavailable:
            self._fail([read])
        else:
            with self._step():
                read.done(deliveries)

    async def _count_waiting(self, read: CountWaiting) -> None:
        try:
            count = await self._log.count_waiting(read.tenant, read.agent)
        except LogUnavailable:
            self._fail([read])
        else:
            with self._step():
                read.done(count)

    async def _read_message(self, read: ReadMessage) -> None:
        try:
            stored = await self._log.message(read.tenant, read.message_id)
        except LogUnavailable as error:
            with self._step():
                read.failed(refusal_of(error))
        else:
            with self._step():
                read.done(Message.FromString(stored) if stored is not None else None)

    def _complete(self, reads: Sequence[Any], counts: Sequence[int], results: Sequence[R]) -> None:
        """Hand each read its share of the results, which are in the order of the reads."""
        start = 0
        with self._step():
            for read, count in zip(reads, counts, strict=True):
                read.done(list(results[start : start + count]))
                start += count

    def _fail(self, reads: Sequence[Any]) -> None:
        with self._step():
            for read in reads:
                read.failed()
