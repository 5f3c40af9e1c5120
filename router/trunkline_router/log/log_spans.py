"""Spans of logs, for work on all logs of a tenant that is done in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trunkline_router.core.values.topics import TopicKey


class LogSpan(NamedTuple):
    """A log, or a range of its entries; empty if `last` is less than `first`."""

    topic_id: int
    topic: TopicKey
    epoch: str
    first: int
    last: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.last - self.first + 1


class LogPiece(NamedTuple):
    """Some of a tenant's logs."""

    logs: list[LogSpan]
    #: There may be more after them.
    more: bool


def take_logs(logs: Sequence[LogSpan], max_entries: int) -> list[LogSpan]:
    """The first logs that hold at most `max_entries` together; at least one, if there is any."""
    entries = 0
    for count, log in enumerate(logs):
        entries += log.entries
        if count and entries > max_entries:
            return list(logs[:count])
    return list(logs)


def take_entries(
    logs: Iterable[LogSpan], max_entries: int, resumed_topic_id: int, done_seq: int
) -> list[LogSpan]:
    """Cut logs down to spans of at most `max_entries` together, in order.

    The log `resumed_topic_id` continues after `done_seq`.
    """
    spans = []
    left = max_entries
    for log in logs:
        first = max(log.first, done_seq + 1) if log.topic_id == resumed_topic_id else log.first
        span = log._replace(first=first, last=min(log.last, first + left - 1))
        spans.append(span)
        left -= span.entries
        if span.last < log.last:
            break
    return spans


def agents_of(spans: Iterable[LogSpan], messages: Iterable[tuple[int, int]]) -> set[str]:
    """Return the agents of the logs of these messages, given as topic_id and seq."""
    touched = {topic_id for topic_id, _ in messages}
    return {span.topic[1] for span in spans if span.topic_id in touched}
