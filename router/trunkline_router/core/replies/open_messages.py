"""All messages that are open: begun, extended, taken up, checkpointed and ended.

The log is told when a message is opened, when somebody else takes it up, when it ends, and from time
to time what was added. Listeners are told each delta at once, so what they have seen may be ahead of
the log; after a crash they are given what the log holds, and producers go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.message_pb2 import Author, Delta, Message

from trunkline_router.core.agents.worker import AttachedWorker
from trunkline_router.core.commits.commit_queue import AtomicWrite, CommitQueue
from trunkline_router.core.commits.effects import Read, ReadMessage
from trunkline_router.core.commits.publishing import PublishPipeline
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.replies.commit_listeners import (
    CheckpointCommit,
    EndCommit,
    EndListener,
    Failed,
    TakeoverCommit,
)
from trunkline_router.core.replies.streamed_message import Ended, StreamedMessage
from trunkline_router.core.values.log_records import Page, PendingEntry, StoredOpen, Transaction
from trunkline_router.core.values.message_states import CANCELLED, EXPIRED, OPEN
from trunkline_router.core.values.topics import Position, TopicKey

Found = Callable[[Message | None], None]


class OpenMessages:
    """The table of open messages, and what can be done with them."""

    def __init__(
        self,
        directory: Directory,
        commit_queue: CommitQueue,
        publishing: PublishPipeline,
        reads: list[Read],
        *,
        lease_s: float,
        checkpoint_bytes: int,
        max_bytes: int,
        workers: set[AttachedWorker],
    ) -> None:
        self._directory = directory
        self._commit_queue = commit_queue
        self._publishing = publishing
        self._reads = reads
        self._lease_s = lease_s
        self._checkpoint_bytes = checkpoint_bytes
        self._max_bytes = max_bytes
        #: About what all of them hold together.
        self._bytes = 0
        self._by_id: dict[str, StreamedMessage] = {}
        self._by_topic: dict[TopicKey, dict[int, StreamedMessage]] = {}
        #: By tenant; those on their way to the log count.
        self._counts: dict[str, int] = {}
        self._ends: dict[StreamedMessage, EndCommit] = {}
        #: Those that are attached.
        self.workers = workers
        #: Called with a message that has come further on disk, and with one that has ended.
        self.saved: Callable[[StreamedMessage], None] = lambda message: None
        self.ended: Callable[[StreamedMessage, Position], None] = lambda message, position: None

    # Looking up

    def get(self, message_id: str) -> StreamedMessage | None:
        """An open message by id."""
        return self._by_id.get(message_id)

    def of(self, topic: TopicKey) -> Iterable[StreamedMessage]:
        """The open messages of a topic, in the order of its log."""
        return self._by_topic.get(topic, {}).values()

    def replies_to(self, topic: TopicKey, message_id: str) -> Iterator[StreamedMessage]:
        """The open messages of a topic that answer a message."""
        return (message for message in self.of(topic) if message.reply_to == message_id)

    def count(self, tenant: str) -> int:
        """How many a tenant has."""
        return self._counts.get(tenant, 0)

    def present(self, topic: TopicKey, seq: int) -> Message | None:
        """What was said so far in the message that stands there, if it is open."""
        message = self._by_topic.get(topic, {}).get(seq)
        return message.snapshot() if message is not None else None

    def as_they_are(self, topic: TopicKey, page: Page) -> list[Message] | None:
        """The messages of a page, with what was said so far in those that are open.

        None where one of them has ended since the page was read, or begins just now: read it again.
        """
        messages = [self.present(topic, e.seq) or Message.FromString(e.body) for e in page.entries]
        current = all(m.state != OPEN or m.id in self._by_id for m in messages)
        return messages if current else None

    # Opening

    def make_room(self, tenant: str) -> None:
        """One more is about to be opened. Raises Refused TOO_MANY_OPEN_MESSAGES."""
        limit = self._directory.tenant(tenant).limits.open_messages
        if self.count(tenant) >= limit:
            raise catalogue.TOO_MANY_OPEN_MESSAGES.refused(limit=limit)
        self._counts[tenant] = self.count(tenant) + 1

    def not_opened(self, tenant: str) -> None:
        """Nothing came of it."""
        self._counts[tenant] -= 1

    def opened(self, pending: PendingEntry, now: float) -> StreamedMessage:
        """A message that begins open is on disk; to be called before anybody is told of it."""
        assert pending.producer is not None
        return self._enter(StreamedMessage(pending.topic, pending.message, pending.producer, now))

    def load(self, stored: Iterable[StoredOpen], now: float) -> None:
        """Enter what the log holds when the router starts. Producers have a lease's time to come back."""
        for row in stored:
            message = StreamedMessage(row.topic, Message.FromString(row.message), row.producer, now)
            for deltas in row.deltas:
                message.restore(ReplyDeltas.FromString(deltas))
            tenant = row.topic[0]
            self._counts[tenant] = self.count(tenant) + 1
            self._enter(message)

    def _enter(self, message: StreamedMessage) -> StreamedMessage:
        self._by_id[message.id] = message
        self._bytes += message.size
        self._by_topic.setdefault(message.topic, {})[message.seq] = message
        return message

    def _remove(self, message: StreamedMessage) -> None:
        if self._by_id.pop(message.id, None) is None:
            return
        of_topic = self._by_topic[message.topic]
        del of_topic[message.seq]
        if not of_topic:
            del self._by_topic[message.topic]
        self._counts[message.topic[0]] -= 1
        self._bytes -= message.size

    def take_up(self, message: StreamedMessage, name: str, done: Callable[[], None], failed: Failed) -> None:
        """Give the message to a new producer: `done` once that is on disk, and nobody else can write."""
        self._commit_queue.add_write(TakeoverCommit(message, name, done, failed).write)

    # Extending

    def extend(
        self, message: StreamedMessage, deltas: Iterable[Delta], blocked_by: set[Link], now: float
    ) -> None:
        """Add deltas and tell the listeners.

        Raises Refused at the first that is refused; those before it were added. OVERLOADED where all
        open messages together hold more than `max_bytes`.
        """
        message.heard_at = now
        if message.ended is not None:
            # Its producer is told once that is on disk, or may go on if it cannot be.
            return
        if self._bytes > self._max_bytes:
            raise catalogue.OVERLOADED.refused(problem=f"open messages hold over {self._max_bytes} bytes")
        topic = self._directory.topics.get(message.topic)
        links = topic.links if topic is not None else ()
        before = message.size
        try:
            for delta in deltas:
                if message.add(delta) and links:
                    self._publishing.publish_delta(links, message.id, delta, blocked_by)
        finally:
            self._bytes += message.size - before
            if message.unsaved_bytes >= self._checkpoint_bytes:
                self._checkpoint(message)
            elif message.unsaved_since is None:
                message.unsaved_since = now

    def checkpoint(self, since: float) -> None:
        """Have the log told of what was added to messages with something that waits since then, or longer."""
        for message in self._by_id.values():
            if message.unsaved_since is not None and message.unsaved_since <= since:
                self._checkpoint(message)

    def _checkpoint(self, message: StreamedMessage) -> None:
        if message.has_unsaved and message.ended is None:
            transaction = Transaction(checkpoints=[message.checkpoint()])
            self._commit_queue.add_write(AtomicWrite(transaction, CheckpointCommit(self, message)))

    # Ending

    def end(
        self, message: StreamedMessage, how: Ended, listener: EndListener | None, author: Author | None
    ) -> None:
        """End a message; the origin is told how it has ended, which is how it was ended first."""
        under_way = self._ends.get(message)
        if under_way is None:
            message.ended = how
            under_way = self._ends[message] = EndCommit(self, message)
            self._commit_queue.add(under_way.pending(how, author), message.size)
        if listener is not None:
            under_way.listeners.append(listener)

    def give_up(self, topic: TopicKey, message_id: str) -> None:
        """No attempt to answer a message will be made any more: the replies to it expire."""
        for message in self.replies_to(topic, message_id):
            self.end(message, Ended(EXPIRED), None, None)

    def cancel(self, message: StreamedMessage, listener: EndListener | None, author: Author | None) -> None:
        """End a message on behalf of its readers."""
        self.end(message, Ended(CANCELLED), listener, author)

    def committed_end(self, message: StreamedMessage, position: Position) -> None:
        """The end is on disk."""
        del self._ends[message]
        self._remove(message)
        self.ended(message, position)

    def failed_end(self, message: StreamedMessage) -> None:
        """The end is not on disk: the message is as open as before."""
        self._ends.pop(message, None)
        message.ended = None
        self.saved(message)

    def find(self, tenant: str, message_id: str, done: Found, failed: Failed) -> None:
        """Read a message that is not open; it may be one that has ended."""
        reason = catalogue.LOG_UNAVAILABLE.refused()
        self._reads.append(ReadMessage(tenant, message_id, done, lambda: failed(reason)))

    # Time and erasure

    def tick(self, now: float) -> None:
        """End those whose producers are gone."""
        for message in self._by_id.values():
            owner = message.owner
            heard_at = owner.heard_at if owner in self.workers else message.heard_at
            if heard_at + self._lease_s <= now and message.ended is None:
                self.end(message, Ended(EXPIRED), None, None)

    def erased(self, topic: TopicKey) -> list[StreamedMessage]:
        """The topic's log was erased, and these with it."""
        gone = list(self.of(topic))
        for message in gone:
            self._remove(message)
            self._ends.pop(message, None)
        return gone
