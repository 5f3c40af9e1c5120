"""How far users have been given, and have read, what they hear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import DeliveredFrame, ReadFrame
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.commits.commit_queue import AtomicWrite, CommitQueue
from trunkline_router.core.commits.effects import Read, ReadDelivered, ReadPages
from trunkline_router.core.commits.publishing import PublishPipeline
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link, Topic
from trunkline_router.core.values.log_records import (
    DeliveredPosition,
    EntryKind,
    Page,
    PageRequest,
    PendingEntry,
    Transaction,
)
from trunkline_router.core.values.topics import EMPTY, GROUP, PERSON, USER, Position, TopicKey, position_of

#: Users whose receipts are known without asking the log.
MAX_KNOWN = 100_000

_Known = dict[tuple[TopicKey, str], Position]


class Receipts:
    """Takes what clients say of themselves. What is known already is not logged again."""

    def __init__(
        self, commit_queue: CommitQueue, reads: list[Read], publishing: PublishPipeline, answers: ClientOutbox
    ) -> None:
        self._commit_queue = commit_queue
        self._reads = reads
        self._publishing = publishing
        self._answers = answers
        self._read: _Known = {}
        self._delivered: _Known = {}

    def read(self, connection: ConnectedClient, topic: Topic, frame: ReadFrame) -> None:
        """A user has read up to here: an entry of the log, which all hear, also who sent it."""
        position = _checked(connection, topic, frame)
        known = self._read.get((topic.key, connection.user))
        read = ReadFrame(user=connection.user, address=topic.address)
        read.conversation.CopyFrom(topic.address.conversation)
        if known is not None and known.epoch == position.epoch and known.seq >= position.seq:
            read.position.CopyFrom(known.to_proto())
            self._answers.send(connection, 128).read.CopyFrom(read)
            return
        read.position.CopyFrom(frame.position)
        _remember(self._read, topic.key, connection.user, position)
        pending = PendingEntry(
            topic.key, Message(), read=read, listener=ReadCommit(self, self._answers, connection)
        )
        self._commit_queue.add(pending, 128)

    def delivered(self, connection: ConnectedClient, topic: Topic, frame: DeliveredFrame) -> None:
        """A user was given all up to here: kept, and told to the author of what stands there.

        In a topic that is no conversation it is nobody's but the user's.
        """
        position = _checked(connection, topic, frame)
        known = self._delivered.get((topic.key, connection.user))
        if known is not None and known.epoch == position.epoch and known.seq >= position.seq:
            return
        _remember(self._delivered, topic.key, connection.user, position)
        told = None
        if topic.key[3] in (PERSON, GROUP):
            told = DeliveredFrame(position=frame.position, user=connection.user, address=topic.address)
            told.conversation.CopyFrom(topic.address.conversation)
        receipt = DeliveredPosition(topic.key, connection.user, position)
        self._commit_queue.add_write(
            AtomicWrite(Transaction(delivered=[receipt]), DeliveredCommit(self, receipt, told))
        )

    def user_erased(self, tenant: str, user: str) -> None:
        """What is in the log of a user was erased."""
        for known in (self._read, self._delivered):
            for key in [key for key in known if key[1] == user and key[0][0] == tenant]:
                del known[key]

    def look_up(
        self,
        user: str,
        topics: Sequence[TopicKey],
        done: Callable[[dict[TopicKey, Position]], None],
        failed: Callable[[], None],
    ) -> None:
        """Find out how far a user has told to have been given these topics; seq 0 where not at all."""

        def read(stored: list[Position]) -> None:
            told = zip(topics, stored, strict=True)
            done({topic: self._furthest(topic, user, position) for topic, position in told})

        self._reads.append(ReadDelivered([(topic, user) for topic in topics], read, failed))

    def _furthest(self, topic: TopicKey, user: str, stored: Position) -> Position:
        """What was told just now may not be on disk yet; what was told to a router before, is there only."""
        told = [known.get((topic, user), EMPTY) for known in (self._read, self._delivered)]
        return max([stored, *(position for position in told if position.epoch == stored.epoch)])

    def forget(self, topic: TopicKey, user: str) -> None:
        """A receipt did not get into the log."""
        self._read.pop((topic, user), None)
        self._delivered.pop((topic, user), None)

    def tell_author(self, receipt: DeliveredPosition, told: DeliveredFrame) -> None:
        """A receipt is on disk."""
        before = Position(receipt.position.epoch, receipt.position.seq - 1)
        request = PageRequest(receipt.topic, 1, after=before if before.seq else EMPTY)
        done = partial(self._author_read, receipt, told)
        # The receipt is kept; only the author is not told at once where the log cannot be read.
        self._reads.append(ReadPages([request], done, lambda: None))

    def _author_read(self, receipt: DeliveredPosition, told: DeliveredFrame, pages: list[Page]) -> None:
        entries = pages[0].entries
        if not entries or entries[0].kind is not EntryKind.MESSAGE:
            return
        author = Message.FromString(entries[0].body).author.user
        if author and author != receipt.user:
            topic: TopicKey = (receipt.topic[0], "", "", USER, author)
            for publish in self._publishing.fan_out(topic, 128, _NOBODY):
                publish.frame.delivered.CopyFrom(told)


class _SilentListener:
    """The router itself; it cannot be held up."""

    connection: ConnectedClient | None = None

    @property
    def blocked_by(self) -> set[Link]:
        return set()

    def committed(self, pending: PendingEntry) -> None: ...

    def refused(self, pending: PendingEntry, reason: Refused) -> None: ...


_NOBODY = _SilentListener()


def _remember(known: _Known, topic: TopicKey, user: str, position: Position) -> None:
    if len(known) >= MAX_KNOWN:
        del known[next(iter(known))]
    known[topic, user] = position


def _checked(connection: ConnectedClient, topic: Topic, frame: Any) -> Position:
    """The position that a receipt names. Raises Refused where it is not one of the topic's log."""
    if not connection.user:
        problem = "must have been given on connecting, as receipts are kept for users"
        raise catalogue.INVALID_ARGUMENT.refused(field="user", problem=problem)
    position = position_of(frame.position)
    known = topic.position or EMPTY
    if position.epoch != known.epoch or not 0 < position.seq <= known.seq:
        raise catalogue.CURSOR_MISMATCH.refused()
    return position


class ReadCommit:
    """Origin of a read receipt. `connection` is not set, as its own client hears it too."""

    __slots__ = ("_answers", "_receipts", "_sender")

    connection: ConnectedClient | None = None

    def __init__(self, receipts: Receipts, answers: ClientOutbox, sender: ConnectedClient) -> None:
        self._receipts = receipts
        self._answers = answers
        self._sender = sender

    @property
    def blocked_by(self) -> set[Link]:
        """An edge's clients are held back together, by the credit of its link."""
        return self._sender.link.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """It comes back as `read`."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Answer with `error`."""
        self._receipts.forget(pending.topic, self._sender.user)
        self._answers.refuse(self._sender, "", reason)


class DeliveredCommit:
    """Origin of a receipt of what was delivered."""

    __slots__ = ("_receipt", "_receipts", "_told")

    def __init__(self, receipts: Receipts, receipt: DeliveredPosition, told: DeliveredFrame | None) -> None:
        self._receipts = receipts
        self._receipt = receipt
        #: What its author is told; None where there is nothing to tell.
        self._told = told

    def done(self) -> None:
        """It is on disk."""
        if self._told is not None:
            self._receipts.tell_author(self._receipt, self._told)

    def failed(self, reason: Refused) -> None:
        """It is not; the next one says the same and more."""
        self._receipts.forget(self._receipt.topic, self._receipt.user)
