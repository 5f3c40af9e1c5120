"""Receipts: how far users have received and read their topics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import DeliveredFrame, ReadFrame
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.clients.conversations import subscribed_topic
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.commit_queue import AtomicWrite
from trunkline_router.core.commits.effects import CommitListener, Effects, ReadDelivered, ReadPages
from trunkline_router.core.commits.fan_out import FanOut, NoticeSource
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.validation.validator import topic_address
from trunkline_router.core.values.log_records import (
    DeliveredPosition,
    EntryKind,
    Page,
    PageRequest,
    PendingEntry,
    Transaction,
)
from trunkline_router.core.values.topics import (
    EMPTY,
    GROUP,
    PERSON,
    USER,
    Position,
    TopicKey,
    address_of,
    describe,
    position_of,
    topic_of,
)

#: Users whose receipts are cached; beyond it the oldest is dropped.
MAX_CACHED = 100_000

_Cache = dict[tuple[TopicKey, str], Position]


class Receipts:
    """Records `read` and `delivered` frames. A receipt that brings nothing new is not logged."""

    def __init__(self, fan_out: FanOut, outbox: ClientOutbox, effects: Effects) -> None:
        self._fan_out = fan_out
        self._outbox = outbox
        self._effects = effects
        self._read: _Cache = {}
        self._delivered: _Cache = {}

    def handle_read(self, received: ReceivedFrame[ReadFrame]) -> None:
        """Log how far the user has read; all subscribers receive it, the sender included."""
        connection, frame, _, _ = received
        topic = subscribed_topic(connection, frame)
        position = _checked(connection, topic, frame)
        known = self._mark(topic.key, connection.user, position, ReadAnswer(self._outbox, connection))
        if known is not None:
            read = _read_frame(topic.key, connection.user, known)
            self._outbox.send(connection, 128).read.CopyFrom(read)

    def mark_read(
        self, topic: TopicKey, user: str, position: Position, head: Position, listener: CommitListener
    ) -> Position | None:
        """Log how far a user without a connection has read a conversation whose log ends at `head`.

        Returns None if the listener will be notified, and otherwise the known position: the user has read
        that far already, and nothing is logged. Raises Refused CURSOR_MISMATCH for a position that is not
        in the log.
        """
        _check_position(position, head)
        return self._mark(topic, user, position, listener)

    def _mark(
        self, topic: TopicKey, user: str, position: Position, listener: CommitListener
    ) -> Position | None:
        known = self._read.get((topic, user))
        if known is not None and known.epoch == position.epoch and known.seq >= position.seq:
            return known
        _cache(self._read, topic, user, position)
        read = _read_frame(topic, user, position)
        commit = ReadCommit(self, user, listener)
        self._effects.commit_queue.add(PendingEntry(topic, Message(), read=read, listener=commit), 128)
        return None

    def handle_delivered(self, received: ReceivedFrame[DeliveredFrame]) -> None:
        """Store how far the user has received a topic, and notify the author of the message there.

        The author is notified in conversations only; in other topics the receipt concerns only the user.
        """
        connection, frame, _, _ = received
        topic = _delivered_topic(connection, frame)
        position = _checked(connection, topic, frame)
        known = self._delivered.get((topic.key, connection.user))
        if known is not None and known.epoch == position.epoch and known.seq >= position.seq:
            return
        _cache(self._delivered, topic.key, connection.user, position)
        notice = None
        if topic.key[3] in (PERSON, GROUP):
            notice = DeliveredFrame(position=frame.position, user=connection.user, address=topic.address)
            notice.conversation.CopyFrom(topic.address.conversation)
        receipt = DeliveredPosition(topic.key, connection.user, position)
        listener = DeliveredCommit(self, receipt, notice)
        self._effects.commit_queue.add_write(AtomicWrite(Transaction(delivered=[receipt]), listener))

    def look_up(
        self,
        user: str,
        topics: Sequence[TopicKey],
        done: Callable[[dict[TopicKey, Position]], None],
        failed: Callable[[], None],
    ) -> None:
        """Look up how far a user has received these topics; seq 0 if there is no receipt."""

        def read(stored: list[Position]) -> None:
            pairs = zip(topics, stored, strict=True)
            done({topic: self._furthest(topic, user, position) for topic, position in pairs})

        self._effects.reads.append(ReadDelivered([(topic, user) for topic in topics], read, failed))

    def _furthest(self, topic: TopicKey, user: str, stored: Position) -> Position:
        """The latest receipts may not be on disk yet; those from before a restart are only there."""
        cached = [cache.get((topic, user), EMPTY) for cache in (self._read, self._delivered)]
        return max([stored, *(position for position in cached if position.epoch == stored.epoch)])

    def user_erased(self, tenant: str, user: str) -> None:
        """A user's receipts were erased from the log."""
        for cache in (self._read, self._delivered):
            for key in [key for key in cache if key[1] == user and key[0][0] == tenant]:
                del cache[key]

    def forget(self, topic: TopicKey, user: str) -> None:
        """Drop cached receipts, as one was not committed."""
        self._read.pop((topic, user), None)
        self._delivered.pop((topic, user), None)

    def notify_author(self, receipt: DeliveredPosition, notice: DeliveredFrame) -> None:
        """Send a committed receipt to the author of the message at its position."""
        before = Position(receipt.position.epoch, receipt.position.seq - 1)
        request = PageRequest(receipt.topic, 1, after=before if before.seq else EMPTY)
        done = partial(self._author_read, receipt, notice)
        # If the log cannot be read, the author is not notified; the receipt itself is stored.
        self._effects.reads.append(ReadPages([request], done, lambda: None))

    def _author_read(self, receipt: DeliveredPosition, notice: DeliveredFrame, pages: list[Page]) -> None:
        entries = pages[0].entries
        if not entries or entries[0].kind is not EntryKind.MESSAGE:
            return
        author = Message.FromString(entries[0].body).author.user
        if author and author != receipt.user:
            topic: TopicKey = (receipt.topic[0], "", "", USER, author)
            # A set of its own, so nothing is blocked.
            for publish in self._fan_out.add(topic, 128, NoticeSource(set())):
                publish.frame.delivered.CopyFrom(notice)


def _delivered_topic(connection: ConnectedClient, frame: DeliveredFrame) -> Topic:
    """Return the topic that a `delivered` frame is about: any that the connection is subscribed to."""
    if not frame.HasField("address"):
        return subscribed_topic(connection, frame)
    if frame.HasField("conversation"):
        problem = "must not be set if conversation is"
        raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
    topic = connection.subscription_to(topic_of(topic_address(frame.address)))
    if topic is None:
        raise catalogue.NOT_SUBSCRIBED.refused(conversation=describe(frame.address))
    return topic


def _checked(connection: ConnectedClient, topic: Topic, frame: ReadFrame | DeliveredFrame) -> Position:
    """Return the receipt's position. Raises Refused CURSOR_MISMATCH if it is not one of the topic's log."""
    if not connection.user:
        problem = "must have been given on connecting, as receipts are kept for users"
        raise catalogue.INVALID_ARGUMENT.refused(field="user", problem=problem)
    position = position_of(frame.position)
    _check_position(position, topic.position or EMPTY)
    return position


def _check_position(position: Position, head: Position) -> None:
    if position.epoch != head.epoch or not 0 < position.seq <= head.seq:
        raise catalogue.CURSOR_MISMATCH.refused()


def _read_frame(topic: TopicKey, user: str, position: Position) -> ReadFrame:
    address = address_of(topic)
    read = ReadFrame(position=position.to_proto(), user=user, address=address)
    read.conversation.CopyFrom(address.conversation)
    return read


def _cache(cache: _Cache, topic: TopicKey, user: str, position: Position) -> None:
    if len(cache) >= MAX_CACHED:
        del cache[next(iter(cache))]
    cache[topic, user] = position


class ReadCommit:
    """Listener of a read receipt; passes the outcome on. Its sender's connections receive it, too."""

    __slots__ = ("_listener", "_receipts", "_user")

    connection: ConnectedClient | None = None

    def __init__(self, receipts: Receipts, user: str, listener: CommitListener) -> None:
        self._receipts = receipts
        self._user = user
        self._listener = listener

    @property
    def blocked_by(self) -> set[Link]:
        """Those of the sender's listener."""
        return self._listener.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The receipt is committed."""
        self._listener.committed(pending)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The receipt was not committed."""
        self._receipts.forget(pending.topic, self._user)
        self._listener.refused(pending, reason)


class ReadAnswer:
    """Listener of a read receipt that was sent on a connection."""

    __slots__ = ("_outbox", "_sender")

    connection: ConnectedClient | None = None

    def __init__(self, outbox: ClientOutbox, sender: ConnectedClient) -> None:
        self._outbox = outbox
        self._sender = sender

    @property
    def blocked_by(self) -> set[Link]:
        """Shared by all clients of an edge."""
        return self._sender.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The receipt is committed; it reaches its sender as `read`."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Answer with `error`."""
        self._outbox.refuse(self._sender, "", reason)


class DeliveredCommit:
    """Listener of a delivery receipt."""

    __slots__ = ("_notice", "_receipt", "_receipts")

    def __init__(self, receipts: Receipts, receipt: DeliveredPosition, notice: DeliveredFrame | None) -> None:
        self._receipts = receipts
        self._receipt = receipt
        #: For the author of the message; None outside conversations.
        self._notice = notice

    def done(self) -> None:
        """The receipt is committed."""
        if self._notice is not None:
            self._receipts.notify_author(self._receipt, self._notice)

    def failed(self, reason: Refused) -> None:
        """The receipt was not committed; the user's next one includes it."""
        self._receipts.forget(self._receipt.topic, self._receipt.user)
