"""A model of the log: dicts and lists, simple enough to be evidently correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_ENDED, Change, Message
from trunkline_router.core.values.log_records import (
    AppendResult,
    Checkpoint,
    Entry,
    EntryKind,
    Page,
    PageRequest,
    PendingEntry,
    Transaction,
)
from trunkline_router.core.values.stored_records import (
    ExpiredDelivery,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey

from tests.router.log.engines import NOW_MS, with_message


@dataclass
class Row:
    """An entry of a log. `target` is the seq of the message that a change concerns.

    `user` is the author until that user is erased.
    """

    kind: EntryKind
    body: bytes
    user: str
    target: int = 0


@dataclass
class OneLog:
    """The log of one topic, with everything that is erased with it."""

    epoch: str
    rows: list[Row] = field(default_factory=list)
    opens: dict[int, StoredOpen] = field(default_factory=dict)
    receipts: dict[str, StoredReceipt] = field(default_factory=dict)
    #: The rows up to this seq were pruned.
    pruned: int = 0
    #: Seqs of withdrawn messages.
    cancelled: set[int] = field(default_factory=set)

    def seqs(self) -> range:
        """The seqs of the entries that were not pruned."""
        return range(self.pruned + 1, len(self.rows) + 1)

    def is_cancelled(self, reply: Message) -> bool:
        """The message that it answers was withdrawn."""
        epoch, _, seq = reply.reply_to.partition("-")
        return epoch == self.epoch and int(seq) in self.cancelled

    def messages(self) -> int:
        """Number of messages."""
        return sum(self.rows[seq - 1].kind is EntryKind.MESSAGE for seq in self.seqs())

    def brought(self, seq: int, first: int) -> bytes:
        """The message that a change brings, in a page that begins at `first`."""
        row = self.rows[seq - 1]
        if row.kind is not EntryKind.CHANGE or row.target <= self.pruned:
            return b""
        kind = Change.FromString(row.body).kind
        if kind == CHANGE_KIND_EDITED or (kind == CHANGE_KIND_ENDED and row.target < first):
            return self.rows[row.target - 1].body
        return b""

    def entry(self, seq: int, first: int) -> Entry:
        row = self.rows[seq - 1]
        message = self.brought(seq, first)
        return Entry(seq, row.kind, with_message(row.body, message) if message else row.body)

    def raise_receipt(self, user: str, delivered: int, read: int) -> None:
        _, had_delivered, had_read, _ = self.receipts.get(user, StoredReceipt(user, 0, 0, 0))
        highest = (max(delivered, had_delivered), max(read, had_read))
        self.receipts[user] = StoredReceipt(user, *highest, NOW_MS)


@dataclass
class Work:
    """A delivery or a dead letter."""

    topic: TopicKey
    seq: int
    attempts: int = 0
    reason: str = ""
    expires_ms: int = 0

    @property
    def has_expired(self) -> bool:
        return 0 < self.expires_ms <= NOW_MS and not self.attempts


class LogModel:
    """All logs. `committed` checks the results of a transaction while applying it."""

    #: Bytes that the log stores with each body.
    overhead = 0

    def __init__(self) -> None:
        self.logs: dict[TopicKey, OneLog] = {}
        self.epochs: set[str] = set()
        #: Digest, position and connections.
        self.kept: dict[bytes, tuple[bytes, Position, int]] = {}
        self.deliveries: dict[int, Work] = {}
        self.dead: dict[int, Work] = {}
        self.highest_delivery = 0

    # Appending

    def committed(self, transaction: Transaction) -> list[PendingEntry]:
        """Apply and check a committed transaction. Returns its new messages."""
        self._deliveries_changed(transaction)
        for topic, user, position in transaction.delivered:
            log = self._log_at(topic, position)
            if log is not None:
                log.raise_receipt(user, position.seq, 0)
        written = [one for one in transaction.entries if not one.repeat_only]
        # Judged by the logs before the transaction: a change follows the commit of its message.
        gone = {one for one in written if one.kind and self._log_at(one.topic, self._target(one)) is None}
        for one in written:
            if one.change is not None and one.result is AppendResult.COMMITTED:
                self._ended(one)
        for checkpoint in transaction.checkpoints:
            self._checkpointed(checkpoint)
        return self._written(transaction.entries, gone)

    def _written(self, pending_entries: list[PendingEntry], gone: set[PendingEntry]) -> list[PendingEntry]:
        seen: set[bytes | None] = set()
        new = []
        later = []
        for one in pending_entries:
            if one.repeat_only or one in gone or (one.key is not None and one.key in seen):
                later.append(one)
            elif one.key in self.kept:
                self._check_repeat(one)
            else:
                self._check_committed(one)
                if one.kind is EntryKind.MESSAGE:
                    new.append(one)
            if not one.repeat_only:
                seen.add(one.key)
        for one in later:
            self._check_repeat(one)
        return new

    def _deliveries_changed(self, transaction: Transaction) -> None:
        for delivery_id in transaction.settled:
            self.deliveries.pop(delivery_id, None)
        due = {(work.topic, work.seq) for work in self.deliveries.values()}
        for one in transaction.withdrawn:
            if one.topic in self.logs:
                self.logs[one.topic].cancelled.add(one.seq)
            assert one.found == ((one.topic, one.seq) in due)
            self.deliveries = {
                number: work
                for number, work in self.deliveries.items()
                if (work.topic, work.seq) != (one.topic, one.seq)
            }
        for delivery_id, attempts, reason in transaction.dead_lettered:
            work = self.deliveries.pop(delivery_id, None)
            if work is not None:
                self.dead[delivery_id] = Work(work.topic, work.seq, attempts, reason)
        for delivery_id, attempts in transaction.attempts:
            if delivery_id in self.deliveries:
                self.deliveries[delivery_id].attempts = attempts

    def _ended(self, one: PendingEntry) -> None:
        assert one.change is not None
        if one.change.kind == CHANGE_KIND_ENDED:
            self.logs[one.topic].opens.pop(one.message.position.seq, None)

    def _checkpointed(self, checkpoint: Checkpoint) -> None:
        log = self.logs.get(checkpoint.topic)
        if log is None or checkpoint.seq not in log.opens:
            return
        opened = log.opens[checkpoint.seq]
        added = [checkpoint.deltas] if checkpoint.deltas else []
        log.opens[checkpoint.seq] = opened._replace(
            producer=checkpoint.producer, deltas=opened.deltas + added
        )

    def _check_repeat(self, one: PendingEntry) -> None:
        if one.key not in self.kept:
            assert one.result is AppendResult.NO_REPEAT
            return
        assert one.key is not None
        digest, position, connections = self.kept[one.key]
        if digest == one.digest or (one.repeat_only and not one.digest):
            assert one.result is AppendResult.DUPLICATE
            assert (one.position, one.connections) == (position.to_proto(), connections)
            if one.kind is EntryKind.MESSAGE:
                assert one.message.id == f"{position.epoch}-{position.seq}"
        else:
            assert one.result is AppendResult.MISMATCH
        assert one.stored == b""

    def _check_committed(self, one: PendingEntry) -> None:
        assert one.result is AppendResult.COMMITTED
        place = Position(one.position.epoch, one.position.seq)
        if one.topic not in self.logs:
            assert place.epoch not in self.epochs
            self.epochs.add(place.epoch)
            self.logs[one.topic] = OneLog(place.epoch)
        log = self.logs[one.topic]
        assert place == Position(log.epoch, len(log.rows) + 1)
        log.rows.append(Row(one.kind, one.stored, _author(one)))
        if one.key is not None:
            self.kept[one.key] = (one.digest, place, one.connections)
        if one.change is not None:
            self._check_changed(one, log)
        elif one.read is not None:
            assert one.stored == one.read.SerializeToString()
            log.raise_receipt(one.read.user, one.read.position.seq, one.read.position.seq)
        else:
            self._check_message(one, log)

    def _check_changed(self, one: PendingEntry, log: OneLog) -> None:
        assert one.change is not None
        assert one.stored == one.change.SerializeToString()
        assert one.change.changed_at == one.message.updated_at
        log.rows[-1].target = target = one.message.position.seq
        if target <= log.pruned or log.rows[target - 1].user != one.message.author.user:
            return
        log.rows[target - 1].body = one.message.SerializeToString()
        if target in log.opens:
            log.opens[target] = log.opens[target]._replace(message=log.rows[target - 1].body)

    def _check_message(self, one: PendingEntry, log: OneLog) -> None:
        assert one.stored == one.message.SerializeToString()
        seq = len(log.rows)
        if one.producer is not None:
            log.opens[seq] = StoredOpen(one.topic, one.stored, one.producer, [])
            assert one.is_cancelled == log.is_cancelled(one.message)
        if one.deliver:
            assert one.delivery_id > self.highest_delivery
            self.highest_delivery = one.delivery_id
            assert one.expires_ms == (NOW_MS + one.expire_after_ms if one.expire_after_ms else 0)
            self.deliveries[one.delivery_id] = Work(one.topic, seq, expires_ms=one.expires_ms)

    # Other operations

    def replayed(
        self, tenant: str, agent: str, wanted: Sequence[int], replayed: list[StoredDelivery]
    ) -> None:
        """Apply and check a replay of dead letters."""
        old = [n for n in sorted(set(wanted)) if n in self.dead and self.dead[n].topic[:2] == (tenant, agent)]
        assert len(replayed) == len(old)
        for number, delivery in zip(old, replayed, strict=True):
            work = self.dead.pop(number)
            assert delivery.delivery_id > self.highest_delivery
            self.highest_delivery = delivery.delivery_id
            self.deliveries[delivery.delivery_id] = Work(work.topic, work.seq)
            assert delivery == StoredDelivery(delivery.delivery_id, work.topic, self._body(work))

    def reset(self, topic: TopicKey) -> int:
        """Erase a log. Returns the number of its messages."""
        log = self.logs.pop(topic, None)
        self.deliveries = {n: work for n, work in self.deliveries.items() if work.topic != topic}
        self.dead = {n: work for n, work in self.dead.items() if work.topic != topic}
        return log.messages() if log is not None else 0

    # Reading

    def head(self, topic: TopicKey) -> Position:
        log = self.logs.get(topic)
        return EMPTY if log is None else Position(log.epoch, len(log.rows))

    def page(self, request: PageRequest) -> Page:
        """The requested page, found by a full scan."""
        head = self.head(request.topic)
        asked = request.after or request.before
        if asked not in (None, EMPTY) and (asked.epoch != head.epoch or asked.seq > head.seq):
            return Page([], False, head, valid=False)
        log = self.logs.get(request.topic, OneLog(""))
        seqs = [
            seq
            for seq in log.seqs()
            if (request.after is None or seq > request.after.seq)
            and (request.before is None or seq < request.before.seq)
            and not (request.messages_only and log.rows[seq - 1].kind)
        ]
        if request.after is None:
            seqs.reverse()
        found: list[int] = []
        total = 0
        for seq in seqs[: request.limit]:
            # Backward, the first seq is not known yet, so any end may bring its message.
            first = seqs[0] if request.after is not None else head.seq + 1
            bodies = filter(None, (log.rows[seq - 1].body, log.brought(seq, first)))
            total += sum(len(body) + self.overhead for body in bodies)
            if found and total > request.max_bytes:
                break
            found.append(seq)
        found.sort()
        entries = [log.entry(seq, found[0]) for seq in found]
        return Page(entries, len(found) < len(seqs), head)

    def message(self, topic: TopicKey, position: Position) -> bytes | None:
        log = self._log_at(topic, position)
        return None if log is None or position.seq <= log.pruned else log.rows[position.seq - 1].body

    def open_messages(self) -> list[StoredOpen]:
        return [
            opened._replace(is_cancelled=log.is_cancelled(Message.FromString(opened.message)))
            for log in self.logs.values()
            for opened in log.opens.values()
        ]

    def receipts_of(self, topic: TopicKey) -> list[StoredReceipt]:
        return sorted(self.logs[topic].receipts.values()) if topic in self.logs else []

    def delivered(self, topic: TopicKey, user: str) -> Position:
        delivered = {receipt.user: receipt.delivered for receipt in self.receipts_of(topic)}
        return Position(self.head(topic).epoch, delivered.get(user, 0))

    def owed(self, tenant: str, agent: str) -> list[StoredDelivery]:
        return [
            StoredDelivery(number, work.topic, self._body(work), work.attempts, work.expires_ms)
            for number, work in sorted(self.deliveries.items())
            if work.topic[:2] == (tenant, agent)
        ]

    def waiting(self, tenant: str, agent: str) -> int:
        works = [work for work in self.deliveries.values() if work.topic[:2] == (tenant, agent)]
        return sum(not work.has_expired for work in works)

    def expired(self) -> list[ExpiredDelivery]:
        works = sorted(self.deliveries.items())
        return [ExpiredDelivery(number, *work.topic[:2]) for number, work in works if work.has_expired]

    def dead_letters_of(self, tenant: str, agent: str) -> list[StoredDeadLetter]:
        return [
            StoredDeadLetter(number, self._body(work), work.attempts, work.reason, NOW_MS)
            for number, work in sorted(self.dead.items())
            if work.topic[:2] == (tenant, agent)
        ]

    def _body(self, work: Work) -> bytes:
        return self.logs[work.topic].rows[work.seq - 1].body

    def _log_at(self, topic: TopicKey, position: Position) -> OneLog | None:
        log = self.logs.get(topic)
        return log if log is not None and log.epoch == position.epoch else None

    @staticmethod
    def _target(one: PendingEntry) -> Position:
        place = one.message.position if one.read is None else one.read.position
        return Position(place.epoch, place.seq)


def _author(one: PendingEntry) -> str:
    if one.read is not None:
        return one.read.user
    return (one.message if one.change is None else one.change).author.user
