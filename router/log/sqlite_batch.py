"""Makes rows of drafts: numbers them, completes and serializes their messages. No I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from router.core.journal import Draft
from router.core.topics import Position, TopicKey

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
#: How many characters of it hold 64 bits.
_EPOCH_CHARACTERS = 13


class Head(NamedTuple):
    """The end of a topic's log; `topic_id` is 0 where the log holds nothing."""

    topic_id: int
    position: Position


@dataclass(slots=True)
class Numbers:
    """The highest numbers given out. They are never given out again, even if what they were for failed."""

    topic_id: int
    delivery_id: int
    #: In `recent_keys`.
    key_id: int


@dataclass(slots=True)
class Batch:
    """Rows that are ready to be written, each table's in one flat list, in the order of its INSERT."""

    settled: Sequence[int]
    topics: list[Any] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    deliveries: list[Any] = field(default_factory=list)
    #: One for each draft, in order.
    bodies: list[bytes] = field(default_factory=list)
    #: Where the logs end once this is committed.
    heads: dict[TopicKey, Head] = field(default_factory=dict)


class _Tail:
    """A log that grows by this batch."""

    __slots__ = ("epoch", "seq", "topic_id")

    def __init__(self, topic_id: int, epoch: str, seq: int) -> None:
        self.topic_id = topic_id
        self.epoch = epoch
        self.seq = seq


def make_batch(
    drafts: Iterable[Draft],
    settled: Sequence[int],
    heads: Mapping[TopicKey, Head],
    numbers: Numbers,
    now_ms: int,
) -> Batch:
    """Number the drafts after `heads`, complete their messages, and make rows of them.

    May be done again for the same drafts, as long as nothing of the batch was written.
    """
    batch = Batch(settled)
    tails: dict[TopicKey, _Tail] = {}
    seconds, milliseconds = divmod(now_ms, 1000)
    nanos = milliseconds * 1_000_000
    for draft in drafts:
        topic = draft.topic
        tail = tails.get(topic)
        if tail is None:
            tail = tails[topic] = _tail(topic, heads[topic], numbers, batch)
        epoch = tail.epoch
        tail.seq = seq = tail.seq + 1
        message = draft.message
        message.id = f"{epoch}-{seq}"
        position = message.position
        position.epoch = epoch
        position.seq = seq
        created_at = message.created_at
        created_at.seconds = seconds
        created_at.nanos = nanos
        author = message.author
        body = message.SerializeToString()
        batch.bodies.append(body)
        batch.messages += (tail.topic_id, seq, now_ms, author.role, author.user, body)
        if draft.key is not None:
            numbers.key_id += 1
            batch.keys += (numbers.key_id, draft.key, draft.digest, epoch, seq, draft.connections, now_ms)
        if draft.deliver:
            numbers.delivery_id += 1
            draft.delivery_id = numbers.delivery_id
            batch.deliveries += (numbers.delivery_id, topic[0], topic[1], tail.topic_id, seq)
    for topic, tail in tails.items():
        batch.heads[topic] = Head(tail.topic_id, Position(tail.epoch, tail.seq))
    return batch


def _tail(topic: TopicKey, head: Head, numbers: Numbers, batch: Batch) -> _Tail:
    if head.topic_id:
        return _Tail(head.topic_id, *head.position)
    numbers.topic_id += 1
    tail = _Tail(numbers.topic_id, _new_epoch(), 0)
    batch.topics += (tail.topic_id, *topic, tail.epoch)
    return tail


def _new_epoch() -> str:
    bits = int.from_bytes(os.urandom(8), "big")
    return "".join(_BASE32[bits >> shift & 31] for shift in range(5 * (_EPOCH_CHARACTERS - 1), -1, -5))
