"""Table of all open messages and the operations on them.

The log records when a message is opened, taken over, checkpointed and ended. Readers receive each
delta at once, so they may be ahead of the log; after a crash they receive what the log holds, and
producers continue from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import (
    Author,
    Delta,
    Message,
)

from trunkline_router.core.commits.effects import Effects, ReadMessage
from trunkline_router.core.commits.fan_out import FanOut
from trunkline_router.core.directory.connections import Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.replies.commit_listeners import (
    CheckpointCommit,
    EndCommit,
    EndListener,
    TakeoverCommit,
)
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.values.failures import error_for_readers
from trunkline_router.core.values.log_records import Page, PendingEntry
from trunkline_router.core.values.message_states import CANCELLED, EXPIRED, FAILED, OPEN
from trunkline_router.core.values.stored_records import StoredOpen
from trunkline_router.core.values.topics import Position, TopicKey


class OpenMessages:
    """Open messages by id and by topic.

    Bounded per tenant by its limit `open_messages`, and together by `max_bytes`: beyond that `extend`
    raises OVERLOADED.
    """

    def __init__(
        self,
        directory: Directory,
        fan_out: FanOut,
        effects: Effects,
        *,
        lease_s: float,
        checkpoint_bytes: int,
        max_bytes: int,
    ) -> None:
        self._directory = directory
        self._fan_out = fan_out
        self._effects = effects
        self._lease_s = lease_s
        self._checkpoint_bytes = checkpoint_bytes
        self._max_bytes = max_bytes
        #: Approximate size of all of them.
        self._bytes = 0
        self._by_id: dict[str, StreamedMessage] = {}
        self._by_topic: dict[TopicKey, dict[int, StreamedMessage]] = {}
        #: By tenant; includes those on their way to the log.
        self._counts: dict[str, int] = {}
        self._ends: dict[StreamedMessage, EndCommit] = {}
        #: Called when more of a message is durable, or when it could not be ended.
        self.on_progress: Callable[[StreamedMessage], None] = lambda message: None
        #: Called when the end of a message is committed.
        self.on_ended: Callable[[StreamedMessage, Position], None] = lambda message, position: None

    # Lookup

    def get(self, message_id: str) -> StreamedMessage | None:
        """Return an open message by id."""
        return self._by_id.get(message_id)

    def of_topic(self, topic: TopicKey) -> Iterable[StreamedMessage]:
        """Return the open messages of a topic, in the order of its log."""
        return self._by_topic.get(topic, {}).values()

    def replies_to(self, topic: TopicKey, message_id: str) -> Iterator[StreamedMessage]:
        """Yield the open messages of a topic that answer a message."""
        return (message for message in self.of_topic(topic) if message.reply_to == message_id)

    def count(self, tenant: str) -> int:
        """Return the number of a tenant's open messages."""
        return self._counts.get(tenant, 0)

    def snapshot_at(self, topic: TopicKey, seq: int) -> Message | None:
        """Return a snapshot of the message at a place in the log, if it is open."""
        message = self._by_topic.get(topic, {}).get(seq)
        return message.snapshot() if message is not None else None

    def current_messages(self, topic: TopicKey, page: Page) -> list[Message] | None:
        """Return the messages of a page, with snapshots of those that are open.

        Returns None if one of them has ended, or was opened, since the page was read: read it again.
        """
        messages = [self.snapshot_at(topic, e.seq) or Message.FromString(e.body) for e in page.entries]
        is_current = all(m.state != OPEN or m.id in self._by_id for m in messages)
        return messages if is_current else None

    def read_message(
        self,
        tenant: str,
        message_id: str,
        done: Callable[[Message | None], None],
        failed: Callable[[Refused], None],
    ) -> None:
        """Read a message that is not open from the log, and call `done` with it or None."""
        self._effects.reads.append(ReadMessage(tenant, message_id, done, failed))

    # Opening

    def reserve(self, tenant: str) -> None:
        """Count a message that is about to be opened. Raises Refused TOO_MANY_OPEN_MESSAGES."""
        limit = self._directory.active_tenant(tenant).limits.open_messages
        if self.count(tenant) >= limit:
            raise catalogue.TOO_MANY_OPEN_MESSAGES.refused(limit=limit)
        self._counts[tenant] = self.count(tenant) + 1

    def release(self, tenant: str) -> None:
        """Uncount a message that was not opened."""
        self._counts[tenant] -= 1

    def opened(self, pending: PendingEntry, now: float) -> StreamedMessage:
        """A message is committed as open; must be called before anybody is notified."""
        assert pending.producer is not None
        message = StreamedMessage(pending.topic, pending.message, pending.producer, now)
        message.is_cancelled = pending.is_cancelled
        return self._add(message)

    def load(self, stored: Iterable[StoredOpen], now: float) -> None:
        """Enter what the log holds at startup. Producers have one lease to come back.

        The next `tick` ends those that were cancelled before.
        """
        for row in stored:
            message = StreamedMessage(row.topic, Message.FromString(row.message), row.producer, now)
            message.is_cancelled = row.is_cancelled
            for deltas in row.deltas:
                message.restore(ReplyDeltas.FromString(deltas))
            tenant = row.topic[0]
            self._counts[tenant] = self.count(tenant) + 1
            self._add(message)

    def _add(self, message: StreamedMessage) -> StreamedMessage:
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

    def take_over(
        self,
        message: StreamedMessage,
        name: str,
        done: Callable[[], None],
        failed: Callable[[Refused], None],
    ) -> None:
        """Replace the message's producer; calls `done` once that is committed and others are fenced."""
        self._effects.commit_queue.add_write(TakeoverCommit(message, name, done, failed).write)

    # Extending

    def extend(
        self, message: StreamedMessage, deltas: Iterable[Delta], blocked_by: set[Link], now: float
    ) -> None:
        """Append deltas and publish them to subscribers.

        Raises Refused at the first invalid delta; those before it were added. Raises OVERLOADED if all
        open messages together hold more than `max_bytes`.
        """
        message.heard_at = now
        if message.ended is not None:
            # The producer is notified when the end is committed, and may continue if it is not.
            return
        if self._bytes > self._max_bytes:
            raise catalogue.OVERLOADED.refused(problem=f"open messages hold over {self._max_bytes} bytes")
        topic = self._directory.topics.get(message.topic)
        links = topic.links if topic is not None else ()
        before = message.size
        try:
            for delta in deltas:
                if message.add(delta) and links:
                    self._fan_out.add_delta(links, message.id, delta, blocked_by)
        finally:
            self._bytes += message.size - before
            if message.unsaved_bytes >= self._checkpoint_bytes:
                self._checkpoint(message)
            elif message.unsaved_since is None:
                message.unsaved_since = now

    # Checkpoints

    def checkpoint(self, since: float) -> None:
        """Checkpoint the messages with deltas added at `since` or before that no checkpoint holds."""
        for message in self._by_id.values():
            if message.unsaved_since is not None and message.unsaved_since <= since:
                self._checkpoint(message)

    def _checkpoint(self, message: StreamedMessage) -> None:
        if message.has_unsaved and message.ended is None:
            self._effects.commit_queue.add_write(CheckpointCommit(message, self._checkpointed).write)

    def _checkpointed(self, message: StreamedMessage) -> None:
        if self._by_id.get(message.id) is message:
            self.on_progress(message)

    # Ending

    def end(
        self, message: StreamedMessage, end: MessageEnd, listener: EndListener | None, author: Author | None
    ) -> None:
        """End a message; the listener receives how it ended, which is the first request's way."""
        commit = self._ends.get(message)
        if commit is None:
            message.ended = end
            commit = self._ends[message] = EndCommit(message, self._end_committed, self._end_failed)
            self._effects.commit_queue.add(commit.entry(end, author), message.size)
        if listener is not None:
            commit.listeners.append(listener)

    def cancel(self, message: StreamedMessage, listener: EndListener | None, author: Author | None) -> None:
        """End a message on behalf of its readers."""
        self.end(message, MessageEnd(CANCELLED), listener, author)

    def cancel_replies(self, topic: TopicKey, message_id: str, author: Author) -> None:
        """End the replies to a message for which the log keeps that they are cancelled."""
        for message in self.replies_to(topic, message_id):
            message.is_cancelled = True
            self.cancel(message, None, author)

    def has_replies(self, topic: TopicKey, message_id: str) -> bool:
        """Return whether a reply to a message is open."""
        return any(True for _ in self.replies_to(topic, message_id))

    def fail_replies(self, topic: TopicKey, message_id: str) -> None:
        """End the replies to a message FAILED: no further attempt to answer it will be made."""
        for message in self.replies_to(topic, message_id):
            self.end(message, MessageEnd(FAILED, error_for_readers()), None, None)

    def _end_committed(self, message: StreamedMessage, position: Position) -> None:
        del self._ends[message]
        self._remove(message)
        self.on_ended(message, position)

    def _end_failed(self, message: StreamedMessage) -> None:
        self._ends.pop(message, None)
        message.ended = None
        self.on_progress(message)

    def log_forked(self, topic: TopicKey, epoch: str) -> None:
        """A log has a new epoch, in which its open messages keep their seqs."""
        for message in self._by_topic.get(topic, {}).values():
            message.log_forked(epoch)

    # Time and erasure

    def tick(self, now: float) -> None:
        """Let the messages expire whose producers have been silent for a lease, and end cancelled ones."""
        for message in self._by_id.values():
            if message.is_cancelled:
                self.cancel(message, None, None)
                continue
            owner = message.owner
            heard_at = owner.heard_at if owner is not None and owner.is_attached else message.heard_at
            if heard_at + self._lease_s <= now and message.ended is None:
                self.end(message, MessageEnd(EXPIRED), None, None)

    def topic_erased(self, topic: TopicKey) -> list[StreamedMessage]:
        """Remove and return a topic's open messages: its log was erased."""
        removed = list(self.of_topic(topic))
        for message in removed:
            self._remove(message)
            self._ends.pop(message, None)
        return removed
