"""In-memory log that fulfils the log interface, for tests that control the timing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_ENDED,
    Change,
    Message,
)
from trunkline_router.core.values.log_records import (
    AppendResult,
    Attempts,
    Checkpoint,
    DeadLettered,
    Entry,
    EntryKind,
    Fork,
    Page,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
    Withdrawal,
)
from trunkline_router.core.values.stored_records import (
    ExpiredDelivery,
    ExpiredPage,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.stored_entries import in_epoch

from tests.support.memory_storage import MemoryStorage, topic_of_stored


class KeyedResult(NamedTuple):
    """Result stored under an idempotency key: the entry and the message it concerns."""

    digest: bytes
    position: Position
    message_id: str
    connections: int


class MemoryLog(MemoryStorage):
    """Synchronous log; its contents count as durable. Callers simulate delays.

    The clock is `now_ms`; the age of an entry follows from its message.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[bytes, KeyedResult] = {}
        self._epochs = (f"e{number}" for number in count(1))
        self._delivery_ids = count(1)
        #: Unix time, by which deliveries expire.
        self.now_ms = 0
        #: Epochs by the former ones.
        self._former: dict[str, str] = {}
        self._forked_topics: set[TopicKey] = set()

    def head(self, topic: TopicKey) -> Position:
        """Return the end of a topic's log."""
        if topic not in self.logs:
            return EMPTY
        epoch, entries = self.logs[topic]
        return Position(epoch, len(entries))

    # Writing

    def append(self, transaction: Transaction) -> None:
        """Commit a transaction."""
        self._fork(transaction.forks)
        for withdrawal in transaction.withdrawn:
            self.cancelled.add(f"{self.head(withdrawal.topic).epoch}-{withdrawal.seq}")
        for pending in transaction.entries:
            self._append(pending)
        for delivery_id in transaction.settled:
            self.unsettled.pop(delivery_id, None)
        for attempts in transaction.attempts:
            self._set_attempts(attempts)
        for dead_lettered in transaction.dead_lettered:
            self._dead_letter(dead_lettered)
        for withdrawal in transaction.withdrawn:
            self._withdraw(withdrawal)
        for checkpoint in transaction.checkpoints:
            self._checkpoint(checkpoint)
        for topic, user, position in transaction.delivered:
            if position.epoch == self.head(topic).epoch:
                receipt = self._receipt(topic, user)
                delivered = max(receipt.delivered, position.seq)
                self._receipts[topic][user] = receipt._replace(delivered=delivered)

    def _fork(self, forks: Sequence[Fork]) -> None:
        for fork in forks:
            epoch, entries = self.logs.get(fork.topic, ("", []))
            if epoch == fork.epoch:
                now = self._former[epoch] = next(self._epochs)
                self._forked_topics.add(fork.topic)
                self.logs[fork.topic] = (now, [(kind, in_epoch(kind, body, now)) for kind, body in entries])
                fork.position = Position(now, len(entries))

    def _append(self, pending: PendingEntry) -> None:
        kept = self._keys.get(pending.key) if pending.key is not None else None
        if kept is not None:
            _repeat(pending, kept)
        elif pending.repeat_only:
            pending.result = AppendResult.NO_REPEAT
        else:
            self._write(pending)

    def _write(self, pending: PendingEntry) -> None:
        if pending.topic not in self.logs:
            assert pending.change is None, "change in an erased log"
            assert pending.read is None, "read in an erased log"
            self.logs[pending.topic] = (next(self._epochs), [])
        epoch, entries = self.logs[pending.topic]
        position = Position(epoch, len(entries) + 1)
        pending.position.CopyFrom(position.to_proto())
        pending.result = AppendResult.COMMITTED
        message = pending.message
        if pending.kind is EntryKind.MESSAGE:
            message.id = f"{epoch}-{position.seq}"
            pending.stored = message.SerializeToString()
            if pending.producer is not None:
                pending.is_cancelled = message.reply_to in self.cancelled
                self.open[message.id] = StoredOpen(pending.topic, pending.stored, pending.producer, [])
        elif pending.change is not None:
            assert message.position.epoch == epoch, "change in an erased log"
            assert not pending.change.HasField("message")
            pending.stored = pending.change.SerializeToString()
            self._put_changed(pending.topic, message)
            self.open.pop(message.id, None)
        elif pending.read is not None:
            assert pending.read.position.epoch == epoch, "read in an erased log"
            pending.stored = pending.read.SerializeToString()
            receipt = self._receipt(pending.topic, pending.read.user)
            seq = pending.read.position.seq
            receipt = receipt._replace(delivered=max(receipt.delivered, seq), read=max(receipt.read, seq))
            self._receipts[pending.topic][pending.read.user] = receipt
        entries.append((pending.kind, pending.stored))
        if pending.key is not None:
            self._keys[pending.key] = KeyedResult(pending.digest, position, message.id, pending.connections)
        if pending.deliver:
            pending.delivery_id = next(self._delivery_ids)
            pending.expires_ms = self.now_ms + pending.expire_after_ms if pending.expire_after_ms else 0
            delivery = StoredDelivery(
                pending.delivery_id, pending.topic, pending.stored, expires_ms=pending.expires_ms
            )
            self.unsettled[pending.delivery_id] = delivery

    def _put_changed(self, topic: TopicKey, message: Message) -> None:
        """Store a changed message unless it is pruned or its author is erased."""
        _, entries = self.logs[topic]
        seq = message.position.seq
        stored = Message.FromString(entries[seq - 1][1])
        if seq > self.pruned.get(topic, 0) and stored.author.user == message.author.user:
            entries[seq - 1] = (EntryKind.MESSAGE, message.SerializeToString())

    def _set_attempts(self, noted: Attempts) -> None:
        if delivery := self.unsettled.get(noted.delivery_id):
            self.unsettled[noted.delivery_id] = delivery._replace(attempts=noted.attempts)

    def _dead_letter(self, dead_lettered: DeadLettered) -> None:
        if delivery := self.unsettled.pop(dead_lettered.delivery_id, None):
            number, attempts, reason = dead_lettered
            self.dead[number] = StoredDeadLetter(number, delivery.message, attempts, reason, 0)

    def _withdraw(self, withdrawal: Withdrawal) -> None:
        for number, delivery in list(self.unsettled.items()):
            seq = Message.FromString(delivery.message).position.seq
            if (delivery.topic, seq) == (withdrawal.topic, withdrawal.seq):
                del self.unsettled[number]
                withdrawal.found = True

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        message_id = f"{self.head(checkpoint.topic).epoch}-{checkpoint.seq}"
        stored = self.open.get(message_id)
        if stored is not None and stored.topic == checkpoint.topic:
            deltas = [*stored.deltas, checkpoint.deltas] if checkpoint.deltas else stored.deltas
            self.open[message_id] = stored._replace(producer=checkpoint.producer, deltas=deltas)

    def _receipt(self, topic: TopicKey, user: str) -> StoredReceipt:
        return self._receipts.setdefault(topic, {}).setdefault(user, StoredReceipt(user, 0, 0, 0))

    def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """Turn dead letters into deliveries again."""
        replayed = []
        for number in delivery_ids:
            letter = self.dead.get(number)
            if letter is None or topic_of_stored(letter.message)[:2] != (tenant, agent):
                continue
            del self.dead[number]
            new = StoredDelivery(next(self._delivery_ids), topic_of_stored(letter.message), letter.message)
            self.unsettled[new.delivery_id] = new
            replayed.append(new)
        return replayed

    # Reading

    def read(self, request: PageRequest) -> Page:
        """Read one page."""
        head = self.head(request.topic)
        epoch, stored = self.logs.get(request.topic, ("", []))
        for position in (request.after, request.before):
            if position is None or position == EMPTY:
                continue
            if position.epoch != epoch or position.seq > head.seq:
                return Page([], False, head, valid=False)
        pruned = self.pruned.get(request.topic, 0)
        entries = [Entry(seq, *entry) for seq, entry in enumerate(stored, 1) if seq > pruned]
        if request.messages_only:
            entries = [entry for entry in entries if entry.kind is EntryKind.MESSAGE]
        if request.after is not None:
            entries = [entry for entry in entries if entry.seq > request.after.seq]
            page = entries[: request.limit]
        else:
            before = request.before
            entries = [entry for entry in entries if before is None or entry.seq < before.seq]
            page = entries[-request.limit :]
        first = page[0].seq if page else 0
        more = len(page) < len(entries)
        entries = [self._with_message(request.topic, entry, first) for entry in page]
        return Page(entries, more, head, is_forked=request.topic in self._forked_topics)

    def _with_message(self, topic: TopicKey, entry: Entry, first: int) -> Entry:
        """Add the message to a change where Entry requires it."""
        if entry.kind is not EntryKind.CHANGE:
            return entry
        change = Change.FromString(entry.body)
        seq = int(change.message_id.partition("-")[2])
        is_before = change.kind == CHANGE_KIND_ENDED and seq < first
        if (change.kind == CHANGE_KIND_EDITED or is_before) and seq > self.pruned.get(topic, 0):
            change.message.MergeFromString(self.logs[topic][1][seq - 1][1])
        return entry._replace(body=change.SerializeToString())

    def message(self, tenant: str, message_id: str) -> bytes | None:
        """Return the current form of a message."""
        epoch, _, number = message_id.partition("-")
        epoch = self._former.get(epoch, epoch)
        seq = int(number) if number.isdecimal() else 0
        for topic, (of_topic, entries) in self.logs.items():
            if topic[0] == tenant and of_topic == epoch and self.pruned.get(topic, 0) < seq <= len(entries):
                kind, body = entries[seq - 1]
                return body if kind is EntryKind.MESSAGE else None
        return None

    def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Return unsettled deliveries of an agent with ids above `after`."""
        found = [d for d in self.unsettled.values() if d.topic[:2] == (tenant, agent)]
        return [d for d in found if d.delivery_id > after][:limit]

    def count_waiting(self, tenant: str, agent: str) -> int:
        """Count the unsettled deliveries of an agent that have not expired."""
        return sum(not self._has_expired(d) for d in self.deliveries(tenant, agent, 0, 1 << 30))

    def expired(self, after: int, limit: int) -> ExpiredPage:
        """Return the expired deliveries among the next `limit`."""
        some = [d for number, d in sorted(self.unsettled.items()) if number > after][:limit]
        expired = [ExpiredDelivery(d.delivery_id, *d.topic[:2]) for d in some if self._has_expired(d)]
        return ExpiredPage(expired, some[-1].delivery_id if len(some) == limit else 0)

    def _has_expired(self, delivery: StoredDelivery) -> bool:
        return 0 < delivery.expires_ms <= self.now_ms and not delivery.attempts

    def delivered(self, whose: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """Return the positions up to which messages were delivered to users."""
        found = []
        for topic, user in whose:
            receipt = self._receipts.get(topic, {}).get(user)
            found.append(Position(self.head(topic).epoch, receipt.delivered if receipt else 0))
        return found

    def receipts(self, topic: TopicKey) -> list[StoredReceipt]:
        """Return the receipts of a topic."""
        return list(self._receipts.get(topic, {}).values())

    def open_messages(self) -> list[StoredOpen]:
        """Return all open messages."""
        return [
            each._replace(is_cancelled=Message.FromString(each.message).reply_to in self.cancelled)
            for each in self.open.values()
        ]

    def changes(self, topic: TopicKey) -> list[Change]:
        """Return all changes in a log."""
        entries = self.logs.get(topic, ("", []))[1][self.pruned.get(topic, 0) :]
        return [Change.FromString(body) for kind, body in entries if kind is EntryKind.CHANGE]

    def reads(self, topic: TopicKey) -> list[ReadFrame]:
        """Return all read receipts in a log."""
        entries = self.logs.get(topic, ("", []))[1][self.pruned.get(topic, 0) :]
        return [ReadFrame.FromString(body) for kind, body in entries if kind is EntryKind.READ]

    def producer(self, message_id: str) -> Producer:
        """Return the producer of an open message."""
        return self.open[message_id].producer


def _repeat(pending: PendingEntry, kept: KeyedResult) -> None:
    if pending.digest and pending.digest != kept.digest:
        pending.result = AppendResult.MISMATCH
        return
    pending.result = AppendResult.DUPLICATE
    pending.message.id = kept.message_id
    pending.position.CopyFrom(kept.position.to_proto())
    pending.connections = kept.connections
