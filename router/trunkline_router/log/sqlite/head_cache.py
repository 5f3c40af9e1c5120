"""The ends of logs that are at hand without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trunkline_router.core.values.topics import TopicKey
from trunkline_router.log.batch import Head


class HeadCache:
    """Ends of logs, always as committed. When full, the one put in longest ago goes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: How many times heads had to be forgotten.
        self.doubts = 0
        self._heads: dict[TopicKey, Head] = {}

    def get(self, topic: TopicKey) -> Head | None:
        """The end of this log, if it is at hand."""
        return self._heads.get(topic)

    def update(self, heads: Mapping[TopicKey, Head]) -> None:
        """These are the ends of these logs now."""
        cached = self._heads
        for topic, head in heads.items():
            cached.pop(topic, None)
            cached[topic] = head
        while len(cached) > self._capacity:
            del cached[next(iter(cached))]

    def forget(self, topics: Iterable[TopicKey]) -> None:
        """The ends of these logs may be others by now."""
        self.doubts += 1
        for topic in topics:
            self._heads.pop(topic, None)

    def forget_all(self) -> None:
        """The end of any log may be another by now."""
        self.doubts += 1
        self._heads.clear()
