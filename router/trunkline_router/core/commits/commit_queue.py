"""Commit queue: entries and atomic writes that wait to be committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from trunkline.v1.catalogue import Refused

from trunkline_router.core.values.log_records import Fork, PendingEntry, Transaction
from trunkline_router.core.values.topics import Position, TopicKey

#: Bound of the entries in one transaction, and so of the time that a commit takes.
MAX_BATCH_ENTRIES = 2048

#: Topics that one process begins new epochs of, because a position shows that they have lost entries.
MAX_FORKED = 100_000


class AtomicWriteListener(Protocol):
    """Notified of the result of an atomic write."""

    def done(self) -> None:
        """All of it is on disk."""

    def failed(self, reason: Refused) -> None:
        """None of it is on disk."""


class AtomicWrite(NamedTuple):
    """A write that is committed as a whole, such as a settlement with its replies."""

    transaction: Transaction
    listener: AtomicWriteListener


class CommitQueue:
    """Entries and atomic writes that wait to be committed, in order.

    `is_full` beyond `max_entries` or `max_bytes`: sources must send no more until it is not. Adding never
    fails, so what sources have under way, bounded by their credit, is still accepted.
    """

    def __init__(self, max_entries: int = 20_000, max_bytes: int = 16 << 20) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.entries = 0
        self.bytes = 0
        self._waiting: deque[PendingEntry | AtomicWrite] = deque()
        #: Forks for the next transaction, by topic.
        self._forks: dict[TopicKey, Fork] = {}
        self._has_new_forks = False
        #: Topics that were forked since the start.
        self._forked: set[TopicKey] = set()
        #: Callbacks that wait for each transaction that was taken and is not done, oldest first.
        self._under_way: deque[list[Callable[[], None]]] = deque()

    def add(self, pending: PendingEntry, size: int) -> None:
        """Append an entry; `size` is about that of its serialized form."""
        pending.size = size
        self.entries += 1
        self.bytes += size
        self._waiting.append(pending)

    def add_write(self, write: AtomicWrite) -> None:
        """Append an atomic write."""
        for pending in write.transaction.entries:
            pending.size = pending.message.ByteSize()
            self.entries += 1
            self.bytes += pending.size
        self._waiting.append(write)

    def fork(self, topic: TopicKey, end: Position, seen: Position, *, is_proved: bool = False) -> None:
        """Begin a new epoch if `seen` is a position of a log's epoch beyond its `end`.

        Entries were lost then, before this process started. The new epoch is on disk before any entry that
        is taken from now on. Each topic is forked once, so that clients who lie cannot go on, and MAX_FORKED
        topics at most.
        """
        if seen.epoch != end.epoch or seen.seq <= end.seq or not end.epoch:
            return
        if topic not in self._forked and len(self._forked) < MAX_FORKED:
            self._forked.add(topic)
            self._forks[topic] = Fork(topic, end.epoch, is_proved)
            self._has_new_forks = True

    def fork_later(self, forks: list[Fork]) -> None:
        """Put forks that were not committed into the next transaction, whenever there is one."""
        self._forks |= {fork.topic: fork for fork in forks}

    @property
    def is_full(self) -> bool:
        """Sources must send no more."""
        return self.entries > self.max_entries or self.bytes > self.max_bytes

    def __bool__(self) -> bool:
        return bool(self._waiting or self._has_new_forks)

    def take(self) -> tuple[Transaction, list[AtomicWrite]]:
        """Take the next transaction, and the atomic writes in it. Call `transaction_done` after it."""
        transaction = Transaction(forks=list(self._forks.values()))
        self._forks.clear()
        self._has_new_forks = False
        entries = transaction.entries
        writes: list[AtomicWrite] = []
        waiting = self._waiting
        while waiting and len(entries) + len(writes) < MAX_BATCH_ENTRIES:
            item = waiting.popleft()
            if isinstance(item, PendingEntry):
                entries.append(item)
            else:
                writes.append(item)
                transaction.join(item.transaction)
        self._count_out(entries)
        self._under_way.append([])
        return transaction, writes

    def transaction_done(self) -> None:
        """The transaction taken first has succeeded or failed, and its listeners are notified."""
        for waiter in self._under_way.popleft():
            waiter()

    def after_commit(self, then: Callable[[], None]) -> None:
        """Call back when no transaction is under way that readers of the log may see already.

        At once if none is under way.
        """
        if self._under_way:
            self._under_way[-1].append(then)
        else:
            then()

    def drop_changes(self, topic: TopicKey) -> list[PendingEntry]:
        """Drop and return the changes and reads that wait for an erased log.

        Atomic writes lose what refers to the log. Messages stay, and begin the new log.
        """
        for item in self._waiting:
            if isinstance(item, AtomicWrite):
                item.transaction.drop_topic(topic)
        dropped = [item for item in self._waiting if isinstance(item, PendingEntry) and _changes(item, topic)]
        if dropped:
            gone = set(map(id, dropped))
            self._waiting = deque(item for item in self._waiting if id(item) not in gone)
            self._count_out(dropped)
        return dropped

    def drop_tenant(
        self, tenant: str, changes_by: str | None = None
    ) -> tuple[list[PendingEntry], list[AtomicWrite]]:
        """Drop and return a tenant's entries, and the atomic writes that contain any.

        With `changes_by`, only changes of messages by that user.
        """

        def is_dropped(pending: PendingEntry) -> bool:
            if pending.topic[0] != tenant:
                return False
            return changes_by is None or (
                pending.change is not None and pending.message.author.user == changes_by
            )

        entries: list[PendingEntry] = []
        writes: list[AtomicWrite] = []
        kept: deque[PendingEntry | AtomicWrite] = deque()
        for item in self._waiting:
            if isinstance(item, PendingEntry):
                (entries if is_dropped(item) else kept).append(item)
            elif any(map(is_dropped, item.transaction.entries)):
                writes.append(item)
                self._count_out(item.transaction.entries)
            else:
                kept.append(item)
        self._count_out(entries)
        self._waiting = kept
        return entries, writes

    def _count_out(self, entries: list[PendingEntry]) -> None:
        self.entries -= len(entries)
        self.bytes -= sum(pending.size for pending in entries)


def _changes(pending: PendingEntry, topic: TopicKey) -> bool:
    return pending.topic == topic and (pending.change is not None or pending.read is not None)
