"""Turns a transaction into rows: counters, completes and serialises its entries. No I/O, no engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_ENDED, Change

from trunkline_router.core.values.log_records import Fork, PendingEntry, Producer, Transaction
from trunkline_router.core.values.topics import Position, TopicKey, position_of
from trunkline_router.log.message_ids import message_id, new_epoch, parse_message_id

# Columns of the rows in a Batch.
MESSAGE_COLUMNS, EVENT_COLUMNS, DELTA_COLUMNS, DEAD_LETTER_COLUMNS = 6, 7, 3, 4
KEY_COLUMNS, KEY_DIGEST, KEY_EPOCH = 7, 2, 3

#: A message in the tables: topic_id and seq.
RowKey = tuple[int, int]


class Head(NamedTuple):
    """The end of a topic's log; `topic_id` is 0 if the log is empty."""

    topic_id: int
    position: Position


class LogEnd(NamedTuple):
    """The end of a topic's log, and the marks in it."""

    head: Head
    #: Entries up to this seq are erased by the tenant's retention.
    pruned: int = 0
    #: Entries up to this seq were written in former epochs.
    forked: int = 0


#: A fork of all logs adds it to the highest topic_id, which nobody outside knows: more than were assigned
#: since the lost commits.
SKIPPED_IDS = 1 << 32
#: Such a fork raises delivery_ids to so many a millisecond of Unix time, more than are ever assigned. By the
#: clock: a fixed step would lead to the same ids each time that one backup is restored. They stay below 2^53,
#: so that JavaScript can represent them.
IDS_PER_MS = 1 << 12


@dataclass(slots=True)
class IdCounters:
    """The highest ids assigned so far. An id is never assigned again, even if its commit failed."""

    topic_id: int
    delivery_id: int
    #: Of idempotency keys, in the order of their arrival.
    key_id: int


@dataclass(slots=True)
class Batch:
    """Rows ready to be written: one flat list per table, columns in the order of the table's statement."""

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
    # Updates, one per row: an UPDATE that meets a row twice may take either value.
    #: The new body and the author of changed messages.
    changed: dict[RowKey, tuple[bytes, str]] = field(default_factory=dict)
    producers: dict[RowKey, Producer] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    #: Messages that are no longer open.
    ended: list[RowKey] = field(default_factory=list)
    #: Messages whose deliveries are withdrawn, by tenant and agent.
    withdrawn: dict[tuple[str, str], set[RowKey]] = field(default_factory=dict)
    #: Those of `withdrawn` that had a delivery; set by the engine when it writes the batch.
    withdrawn_found: set[RowKey] = field(default_factory=set)
    #: Messages that open messages answer, perhaps of another log: topic_id of the answer, seq and id.
    answered: set[tuple[int, int, str]] = field(default_factory=set)
    #: Topic_id and id of those of `answered` that were withdrawn in this log, by this batch or earlier; set
    #: by the engine.
    answered_cancelled: set[tuple[int, str]] = field(default_factory=set)
    #: Time of the commit.
    now_ms: int = 0
    #: New epochs of logs: topic_id, former epoch, its last seq, new epoch.
    forks: list[tuple[int, str, int, str]] = field(default_factory=list)
    #: The whole file is an older copy, so other logs must be forked, too, by the next start.
    is_older_copy: bool = False
    #: The serialised body of each entry, in order.
    bodies: list[bytes] = field(default_factory=list)
    #: The heads of the logs after the commit.
    heads: dict[TopicKey, Head] = field(default_factory=dict)
    #: Tenants of the logs in `messages`, `events`, `deltas` and `changed`, by topic_id.
    tenants: dict[int, str] = field(default_factory=dict)


class _LogTail:
    """The end of a log that this batch extends."""

    __slots__ = ("epoch", "seq", "topic_id")

    def __init__(self, topic_id: int, epoch: str, seq: int) -> None:
        self.topic_id = topic_id
        self.epoch = epoch
        self.seq = seq


def entries_of_erased_logs(
    entries: Iterable[PendingEntry], heads: Mapping[TopicKey, Head]
) -> set[PendingEntry]:
    """Changes and reads of messages whose log was erased."""
    return {
        pending
        for pending in entries
        # Not by `kind`, which is slower: this runs for every message.
        if (pending.change is not None or pending.read is not None)
        and not _is_current(heads[pending.topic], _target_position(pending))
    }


def _target_position(pending: PendingEntry) -> Position:
    return position_of(pending.message.position if pending.read is None else pending.read.position)


def make_batch(
    entries: Iterable[PendingEntry],
    transaction: Transaction,
    heads: Mapping[TopicKey, Head],
    counters: IdCounters,
    now_ms: int,
) -> Batch:
    """Number and complete the entries after `heads`; turn them and the rest of the transaction into rows.

    `entries` replaces the transaction's own; none may be of an erased log. May be repeated for the same
    entries as long as the batch was not committed.
    """
    batch = Batch(transaction.settled, now_ms=now_ms)
    tails: dict[TopicKey, _LogTail] = {}
    seconds, milliseconds = divmod(now_ms, 1000)
    nanos = milliseconds * 1_000_000
    _add_forks(batch, transaction.forks, heads, tails)
    for pending in entries:
        topic = pending.topic
        tail = tails.get(topic)
        if tail is None:
            tail = tails[topic] = _tail_of(topic, heads[topic], counters, batch)
        epoch = tail.epoch
        tail.seq = seq = tail.seq + 1
        if pending.change is not None:
            body = _add_change(batch, pending, pending.change, tail, now_ms)
        elif pending.read is not None:
            body = _add_read(batch, pending.read, tail, now_ms)
        else:
            message = pending.message
            message.id = message_id(epoch, seq)
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
                if message.reply_to and (answered := parse_message_id(message.reply_to)) is not None:
                    batch.answered.add((tail.topic_id, answered[1], message.reply_to))
        batch.bodies.append(body)
        if pending.key is not None:
            counters.key_id += 1
            batch.keys += (
                counters.key_id,
                pending.key,
                pending.digest,
                epoch,
                seq,
                pending.connections,
                now_ms,
            )
        if pending.deliver:
            counters.delivery_id += 1
            pending.delivery_id = counters.delivery_id
            pending.expires_ms = now_ms + pending.expire_after_ms if pending.expire_after_ms else 0
            batch.deliveries += (
                counters.delivery_id,
                topic[0],
                topic[1],
                tail.topic_id,
                seq,
                pending.expires_ms,
            )
    for topic, tail in tails.items():
        batch.heads[topic] = Head(tail.topic_id, Position(tail.epoch, tail.seq))
        batch.tenants[tail.topic_id] = topic[0]
    _add_deliveries(batch, transaction, heads, now_ms)
    _add_progress(batch, transaction, heads, now_ms)
    return batch


def _add_forks(
    batch: Batch, forks: Iterable[Fork], heads: Mapping[TopicKey, Head], tails: dict[TopicKey, _LogTail]
) -> None:
    for fork in forks:
        head = heads[fork.topic]
        if _is_current(head, Position(fork.epoch, 0)):
            epoch, seq = new_epoch(), head.position.seq
            batch.forks.append((head.topic_id, fork.epoch, seq, epoch))
            batch.is_older_copy |= fork.is_proved
            tails[fork.topic] = _LogTail(head.topic_id, epoch, seq)
            fork.position = Position(epoch, seq)


def _add_change(batch: Batch, pending: PendingEntry, change: Change, tail: _LogTail, now_ms: int) -> bytes:
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


def _add_read(batch: Batch, read: ReadFrame, tail: _LogTail, now_ms: int) -> bytes:
    read.at.epoch = tail.epoch
    read.at.seq = tail.seq
    seq = read.position.seq
    body = read.SerializeToString()
    batch.events += (tail.topic_id, tail.seq, now_ms, 0, seq, read.user, body)
    # A message that was read was delivered.
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
        if topic_id := heads[withdrawal.topic].topic_id:
            batch.withdrawn.setdefault(withdrawal.topic[:2], set()).add((topic_id, withdrawal.seq))


def _add_progress(
    batch: Batch, transaction: Transaction, heads: Mapping[TopicKey, Head], now_ms: int
) -> None:
    for checkpoint in transaction.checkpoints:
        row = (heads[checkpoint.topic].topic_id, checkpoint.seq)
        batch.producers[row] = checkpoint.producer
        if checkpoint.deltas:
            batch.deltas += (*row, checkpoint.deltas)
            batch.tenants[row[0]] = checkpoint.topic[0]
    for topic, user, position in transaction.delivered:
        head = heads[topic]
        if _is_current(head, position):
            batch.receipts += (head.topic_id, user, position.seq, 0, now_ms)


def _is_current(head: Head, position: Position) -> bool:
    return head.topic_id != 0 and head.position.epoch == position.epoch


def _tail_of(topic: TopicKey, head: Head, counters: IdCounters, batch: Batch) -> _LogTail:
    if head.topic_id:
        return _LogTail(head.topic_id, *head.position)
    counters.topic_id += 1
    tail = _LogTail(counters.topic_id, new_epoch(), 0)
    batch.topics += (tail.topic_id, *topic, tail.epoch)
    return tail
