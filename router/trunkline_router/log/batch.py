"""Makes rows of a transaction: numbers its entries, completes and serializes them. No I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Change

from trunkline_router.core.values.log_records import PendingEntry, Producer, Transaction
from trunkline_router.core.values.topics import Position, TopicKey, position_of

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
#: How many characters of it hold 64 bits.
_EPOCH_CHARACTERS = 13

#: Where a message stands: topic_id and seq.
Place = tuple[int, int]


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
    """Rows that are ready to be written, each table's in one flat list, in the order of its statement."""

    settled: Sequence[int]
    topics: list[Any] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    deliveries: list[Any] = field(default_factory=list)
    opens: list[Any] = field(default_factory=list)
    deltas: list[Any] = field(default_factory=list)
    receipts: list[Any] = field(default_factory=list)
    dead_lettered: list[Any] = field(default_factory=list)
    # What is set anew, once for each row of the file: an UPDATE that meets a row twice takes either value.
    #: Messages as they are from now on, each with its author.
    changed: dict[Place, tuple[bytes, str]] = field(default_factory=dict)
    producers: dict[Place, Producer] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    #: Messages that are open no longer.
    ended: list[Place] = field(default_factory=list)
    #: By tenant and agent.
    withdrawn: dict[tuple[str, str], set[Place]] = field(default_factory=dict)
    #: Those withdrawn that there were; set as the batch is written.
    found: set[Place] = field(default_factory=set)
    #: One for each entry, in order.
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


def of_erased_logs(entries: Iterable[PendingEntry], heads: Mapping[TopicKey, Head]) -> set[PendingEntry]:
    """Those that are about a message of a log that is there no longer."""
    return {
        pending
        for pending in entries
        # Not by `kind`: this is asked of each of thousands of messages.
        if (pending.change is not None or pending.read is not None)
        and not _stands(heads[pending.topic], _position_of_target(pending))
    }


def _position_of_target(pending: PendingEntry) -> Position:
    return position_of(pending.message.position if pending.read is None else pending.read.position)


def make_batch(
    entries: Iterable[PendingEntry],
    transaction: Transaction,
    heads: Mapping[TopicKey, Head],
    numbers: Numbers,
    now_ms: int,
) -> Batch:
    """Number the entries after `heads`, complete them, and make rows of them.

    Of the transaction, everything else but its entries becomes rows. No entry may be of an erased log. May
    be done again for the same entries, as long as nothing of the batch was written.
    """
    batch = Batch(transaction.settled)
    tails: dict[TopicKey, _Tail] = {}
    seconds, milliseconds = divmod(now_ms, 1000)
    nanos = milliseconds * 1_000_000
    for pending in entries:
        topic = pending.topic
        tail = tails.get(topic)
        if tail is None:
            tail = tails[topic] = _tail(topic, heads[topic], numbers, batch)
        epoch = tail.epoch
        tail.seq = seq = tail.seq + 1
        if pending.change is not None:
            body = _add_change(batch, pending, pending.change, tail, now_ms)
        elif pending.read is not None:
            body = _add_read(batch, pending.read, tail, now_ms)
        else:
            message = pending.message
            message.id = f"{epoch}-{seq}"
            position = message.position
            position.epoch = epoch
            position.seq = seq
            created_at = message.created_at
            created_at.seconds = seconds
            created_at.nanos = nanos
            author = message.author
            body = message.SerializeToString()
            batch.messages += (tail.topic_id, seq, now_ms, author.role, author.user, body)
            if pending.producer is not None:
                batch.opens += (tail.topic_id, seq, *pending.producer)
        batch.bodies.append(body)
        if pending.key is not None:
            numbers.key_id += 1
            batch.keys += (
                numbers.key_id,
                pending.key,
                pending.digest,
                epoch,
                seq,
                pending.connections,
                now_ms,
            )
        if pending.deliver:
            numbers.delivery_id += 1
            pending.delivery_id = numbers.delivery_id
            batch.deliveries += (numbers.delivery_id, topic[0], topic[1], tail.topic_id, seq)
    for topic, tail in tails.items():
        batch.heads[topic] = Head(tail.topic_id, Position(tail.epoch, tail.seq))
    _add_deliveries(batch, transaction, heads, now_ms)
    _add_progress(batch, transaction, heads, now_ms)
    return batch


def _add_change(batch: Batch, pending: PendingEntry, change: Change, tail: _Tail, now_ms: int) -> bytes:
    message = pending.message
    target = (tail.topic_id, message.position.seq)
    change.position.epoch = tail.epoch
    change.position.seq = tail.seq
    change.changed_at.FromMilliseconds(now_ms)
    change.ClearField("message")
    message.updated_at.CopyFrom(change.changed_at)
    body = change.SerializeToString()
    batch.events += (tail.topic_id, tail.seq, now_ms, change.kind, target[1], change.author.user, body)
    batch.changed[target] = (message.SerializeToString(), message.author.user)
    if change.kind == CHANGE_KIND_ENDED:
        batch.ended.append(target)
    return body


def _add_read(batch: Batch, read: ReadFrame, tail: _Tail, now_ms: int) -> bytes:
    read.at.epoch = tail.epoch
    read.at.seq = tail.seq
    seq = read.position.seq
    body = read.SerializeToString()
    batch.events += (tail.topic_id, tail.seq, now_ms, 0, seq, read.user, body)
    # Who has read a message was given it.
    batch.receipts += (tail.topic_id, read.user, seq, seq, now_ms)
    return body


def _add_deliveries(
    batch: Batch, transaction: Transaction, heads: Mapping[TopicKey, Head], now_ms: int
) -> None:
    for delivery_id, attempts in transaction.attempts:
        batch.attempts[delivery_id] = attempts
    for dead_lettered in transaction.dead_lettered:
        batch.dead_lettered += (*dead_lettered, now_ms)
    for withdrawal in transaction.withdrawn:
        place = (heads[withdrawal.topic].topic_id, withdrawal.seq)
        batch.withdrawn.setdefault(withdrawal.topic[:2], set()).add(place)


def _add_progress(
    batch: Batch, transaction: Transaction, heads: Mapping[TopicKey, Head], now_ms: int
) -> None:
    for checkpoint in transaction.checkpoints:
        place = (heads[checkpoint.topic].topic_id, checkpoint.seq)
        batch.producers[place] = checkpoint.producer
        if checkpoint.deltas:
            batch.deltas += (*place, checkpoint.deltas)
    for topic, user, position in transaction.delivered:
        head = heads[topic]
        if _stands(head, position):
            batch.receipts += (head.topic_id, user, position.seq, 0, now_ms)


def _stands(head: Head, position: Position) -> bool:
    return head.topic_id != 0 and head.position.epoch == position.epoch


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
