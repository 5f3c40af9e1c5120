"""Storage of the in-memory log, with erasure and pruning."""

from __future__ import annotations

from itertools import accumulate

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, Author, Change, Message
from trunkline_router.core.values.log_records import Cursor, EntryKind, ErasedPiece, HistoryLimits
from trunkline_router.core.values.stored_records import (
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import PERSON, USER, TopicKey, topic_of

from tests.support.memory_registry import MemoryRegistry


class MemoryStorage(MemoryRegistry):
    """Data that `MemoryLog` writes and reads.

    An erasure processes one topic at a time; its cursor is the number in the topic's epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[TopicKey, tuple[str, list[tuple[EntryKind, bytes]]]] = {}
        #: Number of pruned entries at the beginning of a log.
        self.pruned: dict[TopicKey, int] = {}
        self.unsettled: dict[int, StoredDelivery] = {}
        self.dead: dict[int, StoredDeadLetter] = {}
        #: By message id.
        self.open: dict[str, StoredOpen] = {}
        #: Ids of messages that were withdrawn.
        self.cancelled: set[str] = set()
        self._receipts: dict[TopicKey, dict[str, StoredReceipt]] = {}

    def reset(self, topic: TopicKey) -> None:
        """Erase a topic's log and everything that belongs to it."""
        self.logs.pop(topic, None)
        self.pruned.pop(topic, None)
        self._receipts.pop(topic, None)
        self.unsettled = {k: d for k, d in self.unsettled.items() if d.topic != topic}
        self.dead = {k: d for k, d in self.dead.items() if topic_of_stored(d.message) != topic}
        self.open = {k: o for k, o in self.open.items() if o.topic != topic}

    def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase one of a tenant's logs and, with the last one, the tenant's registration."""
        logs = self._logs_of(tenant, None)
        if len(logs) < 2:
            self.unregister(tenant)
        if not logs:
            return ErasedPiece(0)
        messages = self._messages(logs[0])
        self.reset(logs[0])
        return ErasedPiece(messages, topics=(logs[0],), cursor=(0,) if len(logs) > 1 else None)

    def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """Erase a user's data in one of a tenant's logs."""
        logs = self._logs_of(tenant, cursor)
        if not logs:
            return ErasedPiece(0)
        topic = logs[0]
        rest = (_number(self.logs[topic][0]),) if len(logs) > 1 else None
        receipts = int(self._receipts.get(topic, {}).pop(user, None) is not None)
        if topic[3] in (PERSON, USER) and topic[4] == user:
            messages = self._messages(topic)
            self.reset(topic)
            return ErasedPiece(messages, receipts, (topic,), rest)
        return ErasedPiece(self._forget_user(topic, user), receipts, cursor=rest)

    def _forget_user(self, topic: TopicKey, user: str) -> int:
        entries = self.logs[topic][1]
        erased = set()
        for index in range(self.pruned.get(topic, 0), len(entries)):
            kind, body = entries[index]
            if kind is EntryKind.MESSAGE:
                message = Message.FromString(body)
                if message.author.user == user and message.id not in self.open:
                    erased.add(index + 1)
                    entries[index] = (kind, _erased(message).SerializeToString())
            else:
                entries[index] = (kind, _anonymised(kind, body, user))
        self._drop_deliveries(topic, erased)
        return len(erased)

    def prune(self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int) -> ErasedPiece:
        """Prune the beginning of one of a tenant's logs."""
        logs = self._logs_of(tenant, cursor)
        if not logs:
            return ErasedPiece(0)
        topic = logs[0]
        before = self._messages(topic)
        first = self.pruned.get(topic, 0)
        self.pruned[topic] = max(first, self._beyond(topic, limits, now_ms))
        self._drop_deliveries(topic, set(range(first + 1, self.pruned[topic] + 1)))
        rest = (_number(self.logs[topic][0]),) if len(logs) > 1 else None
        return ErasedPiece(before - self._messages(topic), cursor=rest)

    def _beyond(self, topic: TopicKey, limits: HistoryLimits, now_ms: int) -> int:
        """Return the seq of the last entry that may be pruned."""
        entries = self.logs[topic][1]
        first = self.pruned.get(topic, 0)
        beyond = len(entries) - limits.max_messages if limits.max_messages else 0
        if limits.max_age_ms:
            ages = [now_ms - _created_ms(*entry) for entry in entries[first:]]
            young = [seq for seq, age in enumerate(ages, first) if age <= limits.max_age_ms]
            beyond = max(beyond, min(young, default=len(entries)))
        if limits.max_bytes:
            sizes = accumulate(len(body) for _, body in reversed(entries[first:]))
            kept = sum(size <= limits.max_bytes for size in sizes)
            beyond = max(beyond, len(entries) - max(kept, 1))
        opened = [Message.FromString(each.message).position.seq for each in self._open_in(topic)]
        return min([beyond, *(seq - 1 for seq in opened)])

    def _open_in(self, topic: TopicKey) -> list[StoredOpen]:
        return [each for each in self.open.values() if each.topic == topic]

    def _logs_of(self, tenant: str, cursor: Cursor | None) -> list[TopicKey]:
        """Return a tenant's topics after a cursor."""
        numbers = {topic: _number(epoch) for topic, (epoch, _) in self.logs.items() if topic[0] == tenant}
        after = cursor[0] if cursor else 0
        return sorted((t for t, number in numbers.items() if number > after), key=numbers.__getitem__)

    def _messages(self, topic: TopicKey) -> int:
        entries = self.logs[topic][1][self.pruned.get(topic, 0) :]
        return sum(kind is EntryKind.MESSAGE for kind, _ in entries)

    def _drop_deliveries(self, topic: TopicKey, seqs: set[int]) -> None:
        """Drop deliveries and dead letters of the messages with these seqs."""

        def remains(message: bytes) -> bool:
            one = Message.FromString(message)
            return topic_of(one.address) != topic or one.position.seq not in seqs

        self.unsettled = {k: d for k, d in self.unsettled.items() if remains(d.message)}
        self.dead = {k: d for k, d in self.dead.items() if remains(d.message)}


def topic_of_stored(message: bytes) -> TopicKey:
    """Return the topic of a serialized message."""
    return topic_of(Message.FromString(message).address)


def _number(epoch: str) -> int:
    return int(epoch[1:])


def _created_ms(kind: EntryKind, body: bytes) -> int:
    if kind is EntryKind.MESSAGE:
        return Message.FromString(body).created_at.ToMilliseconds()
    return Change.FromString(body).changed_at.ToMilliseconds() if kind is EntryKind.CHANGE else 0


def _erased(message: Message) -> Message:
    """Return the remains of a message whose author is erased."""
    return Message(
        id=message.id,
        address=message.address,
        position=message.position,
        author=Author(role=message.author.role),
        state=MESSAGE_STATE_RECALLED,
        created_at=message.created_at,
    )


def _anonymised(kind: EntryKind, body: bytes, user: str) -> bytes:
    """Return a change or read receipt, anonymised if it belongs to the user."""
    if kind is EntryKind.READ:
        read = ReadFrame.FromString(body)
        if read.user == user:
            read.ClearField("user")
        return read.SerializeToString()
    change = Change.FromString(body)
    if change.author.user == user:
        change.author.ClearField("user")
        change.author.ClearField("name")
    return change.SerializeToString()
