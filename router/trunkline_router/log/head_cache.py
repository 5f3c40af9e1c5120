"""Caches the heads of logs, so that most appends need no read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.batch import Head

#: Heads that a router keeps in memory, about 500 bytes each.
CACHED_HEADS = 100_000


class HeadCache:
    """Heads of logs as of the last commit. When full, the one updated longest ago is evicted."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: Number of invalidations so far.
        self.invalidations = 0
        self._heads: dict[TopicKey, Head] = {}

    def get(self, topic: TopicKey) -> Head | None:
        """Return the head of a log, or None if it is not cached."""
        return self._heads.get(topic)

    def update(self, heads: Mapping[TopicKey, Head]) -> None:
        """Set the heads of these logs."""
        cached = self._heads
        for topic, head in heads.items():
            cached.pop(topic, None)
            cached[topic] = head
        while len(cached) > self._capacity:
            del cached[next(iter(cached))]

    def invalidate(self, topics: Iterable[TopicKey]) -> None:
        """Forget the heads of these logs, which may have changed."""
        self.invalidations += 1
        for topic in topics:
            self._heads.pop(topic, None)

    def invalidate_all(self) -> None:
        """Forget all heads."""
        self.invalidations += 1
        self._heads.clear()
