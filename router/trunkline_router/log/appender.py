"""Appends transactions: the algorithm that all engines share, over the few writes that each implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from trunkline_router.core.values.log_records import DeliveredPosition, PendingEntry, Transaction
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.append_results import (
    SameContent,
    StoredResult,
    answer_repeat,
    mark_committed,
    result_of,
    split_repeats,
)
from trunkline_router.log.batch import Batch, Head, IdCounters, entries_of_erased_logs, make_batch
from trunkline_router.log.head_cache import HeadCache


class BatchStore(Protocol):
    """The engine's part of an append. Every method may raise LogUnavailable and has then changed nothing."""

    async def heads(self, topics: Sequence[TopicKey]) -> list[Head]:
        """Read the heads of these logs, in order, consistent with all commits so far."""

    async def results(self, keys: Sequence[bytes]) -> dict[bytes, StoredResult]:
        """Read the results stored for these idempotency keys; unknown keys are left out."""

    async def commit(self, batch: Batch) -> dict[bytes, StoredResult]:
        """Commit a batch durably and set its `withdrawn_found` and `answered_cancelled`.

        If any of its idempotency keys is in use, nothing is written, and the results of those keys are
        returned.
        """


class Appender:
    """Numbers, deduplicates and commits transactions, one after the other.

    `is_same_content` compares digests as the store keeps them. `cached_heads` bounds the heads in memory,
    about 500 bytes each. `now_ms` is Unix time.
    """

    def __init__(
        self,
        store: BatchStore,
        counters: IdCounters,
        now_ms: Callable[[], int],
        is_same_content: SameContent,
        cached_heads: int,
    ) -> None:
        self._store = store
        self.counters = counters
        self._now_ms = now_ms
        self._is_same_content = is_same_content
        self.cached_heads = HeadCache(cached_heads)
        #: New epochs by the former ones, of logs that were forked since the start.
        self._forked: dict[str, str] = {}

    async def append(self, transaction: Transaction) -> None:
        """Commit a transaction and complete its entries; see Log.append.

        A change or a read of an erased log is answered like an entry that is `repeat_only`.
        """
        if self._forked:
            self._follow_forks(transaction)
        unwritten = [pending for pending in transaction.entries if pending.repeat_only]
        entries = transaction.entries
        if unwritten:
            entries = [pending for pending in entries if not pending.repeat_only]
        written, repeats = split_repeats(entries)
        topics = {pending.topic for pending in written}
        now_ms = self._now_ms()
        try:
            heads = await self.look_up(topics.union(_topics_besides_entries(transaction)))
            erased = entries_of_erased_logs(written, heads)
            if erased:
                unwritten += erased
                written = [pending for pending in written if pending not in erased]
            results = await self._results_of(unwritten)
            batch = make_batch(written, transaction, heads, self.counters, now_ms)
            used = await self._store.commit(batch)
            if used:
                results.update(used)
                repeats += [pending for pending in written if pending.key in used]
                written = [pending for pending in written if pending.key not in used]
                batch = make_batch(written, transaction, heads, self.counters, now_ms)
                await self._store.commit(batch)
        except BaseException:
            # A cancelled commit may still succeed.
            self.cached_heads.invalidate(topics.union(fork.topic for fork in transaction.forks))
            for fork in transaction.forks:
                fork.position = None
            raise
        self.cached_heads.update(batch.heads)
        self._forked |= {fork.epoch: fork.position.epoch for fork in transaction.forks if fork.position}
        mark_committed(written, batch)
        results.update((pending.key, result_of(pending)) for pending in written if pending.key is not None)
        for pending in unwritten + repeats:
            answer_repeat(pending, results, self._is_same_content)
        for withdrawal in transaction.withdrawn:
            withdrawal.found = (heads[withdrawal.topic].topic_id, withdrawal.seq) in batch.withdrawn_found

    def _follow_forks(self, transaction: Transaction) -> None:
        """Move positions that were read before a fork to the present epoch."""
        forked = self._forked
        for pending in transaction.entries:
            target = pending.message.position if pending.read is None else pending.read.position
            if (pending.change is not None or pending.read is not None) and target.epoch in forked:
                target.epoch = forked[target.epoch]
        for index, (topic, user, (epoch, seq)) in enumerate(transaction.delivered):
            position = Position(forked.get(epoch, epoch), seq)
            transaction.delivered[index] = DeliveredPosition(topic, user, position)

    async def look_up(self, topics: Iterable[TopicKey]) -> dict[TopicKey, Head]:
        """Return the heads of these logs, from the cache or the store.

        The store answers in the order of commits, so a cached head is never replaced by an older one. Only a
        cancelled write can be answered out of order; heads read across an invalidation are not cached.
        """
        heads = {topic: self.cached_heads.get(topic) for topic in topics}
        missing = [topic for topic, head in heads.items() if head is None]
        found: dict[TopicKey, Head] = {}
        if missing:
            before = self.cached_heads.invalidations
            found = dict(zip(missing, await self._store.heads(missing), strict=True))
            if self.cached_heads.invalidations == before:
                self.cached_heads.update(found)
        return {topic: head or found[topic] for topic, head in heads.items()}

    def head(self, topic: TopicKey) -> Position | None:
        """Return the head of a log if it is cached."""
        head = self.cached_heads.get(topic)
        return None if head is None else head.position

    async def _results_of(self, entries: Sequence[PendingEntry]) -> dict[bytes, StoredResult]:
        keys = [pending.key for pending in entries if pending.key is not None]
        return await self._store.results(keys) if keys else {}


def _topics_besides_entries(transaction: Transaction) -> set[TopicKey]:
    """The topics that the rest of a transaction is about."""
    return {
        item.topic
        for items in (
            transaction.checkpoints,
            transaction.delivered,
            transaction.withdrawn,
            transaction.forks,
        )
        for item in items
    }
