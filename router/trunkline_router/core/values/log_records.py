"""Records that the core hands to the log to commit, and pages that it reads back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from trunkline.v1.address_pb2 import Position as PositionProto
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message

from trunkline_router.core.values.topics import Position, TopicKey


class AppendResult(Enum):
    """Result of appending an entry."""

    PENDING = 0
    COMMITTED = 1
    #: The key was used before for the same content: the entry now has the first one's outcome.
    DUPLICATE = 2
    #: The key was used before for other content: nothing was written.
    MISMATCH = 3
    #: Only a repeat was to be answered, and the key was not used before: nothing was written.
    NO_REPEAT = 4


class EntryKind(IntEnum):
    """Kind of a log entry, which determines the message type of its body."""

    #: A Message in its present form, which later entries may change.
    MESSAGE = 0
    #: A Change of an earlier message, without the message.
    CHANGE = 1
    #: A ReadFrame.
    READ = 2

    @property
    def frame_field(self) -> str:
        """The field of ServerFrame that carries such an entry."""
        return _FRAME_FIELDS[self]


_FRAME_FIELDS = ("message", "change", "read")


class Producer(NamedTuple):
    """The producer of an open message."""

    name: str
    #: Fencing token: rises with each takeover, and only the highest may write.
    epoch: int


@dataclass(slots=True, eq=False)
class PendingEntry:
    """An entry on its way to the log: a message, or, if `change` or `read` is set, one of these.

    The log completes it in place. It sets `result` and `stored`, and

    - of a message `id`, `position` and `created_at`, and `delivery_id` and `expires_ms` if `deliver` is set;
    - of an OPEN message `is_cancelled`;
    - of a change `position` and `changed_at`; `message` is then the changed message, which the log stores
      at its old position, with `updated_at`;
    - of a read `at`; the user's receipt is stored with it.

    For a DUPLICATE, `message.id`, `message.position` and `connections`, or `change.position`, become
    those of the first entry with the key.
    """

    topic: TopicKey
    message: Message
    #: Idempotency key: 16 bytes that identify scope and key; None for a message without a key.
    key: bytes | None = None
    #: 8 bytes that tell contents apart, compared if the key is repeated. Empty in an entry that is
    #: `repeat_only` and looks up the key alone.
    digest: bytes = b""
    #: Connections that the address matched when the message was accepted.
    connections: int = 0
    #: Write nothing: answer with the first entry that has the key, or with NO_REPEAT.
    repeat_only: bool = False
    #: Store a delivery for the topic's agent with the message.
    deliver: bool = False
    #: Time from the message's creation to the expiry of the delivery; 0 for never.
    expire_after_ms: int = 0
    #: Set for an OPEN message.
    producer: Producer | None = None
    #: The change to write. A change to a state other than OPEN ends the message in the log.
    change: Change | None = None
    #: The read to write.
    read: ReadFrame | None = None
    result: AppendResult = AppendResult.PENDING
    delivery_id: int = 0
    expires_ms: int = 0
    #: The message that it answers was withdrawn: it must be cancelled at once.
    is_cancelled: bool = False
    #: Body of the entry as stored; set when it is COMMITTED.
    stored: bytes = b""
    #: A CommitListener; the log ignores it.
    listener: Any = None
    #: Approximate size, counted by the commit queue.
    size: int = 0

    @property
    def kind(self) -> EntryKind:
        """Kind of the entry to write."""
        if self.change is not None:
            return EntryKind.CHANGE
        return EntryKind.MESSAGE if self.read is None else EntryKind.READ

    @property
    def position(self) -> PositionProto:
        """Position of the entry itself; set by the log."""
        if self.change is not None:
            return self.change.position
        return self.message.position if self.read is None else self.read.at


class Checkpoint(NamedTuple):
    """Deltas added to an open message, or a new producer of it, or both."""

    topic: TopicKey
    #: Position of the message.
    seq: int
    producer: Producer
    #: Serialized ReplyDeltas that follow the last checkpoint; empty for none.
    deltas: bytes = b""


class Attempts(NamedTuple):
    """A failed attempt at a delivery, which will be repeated; `attempts` counts all so far."""

    delivery_id: int
    attempts: int


class DeadLettered(NamedTuple):
    """A delivery that becomes a dead letter."""

    delivery_id: int
    attempts: int
    reason: str


@dataclass(slots=True, eq=False)
class Withdrawal:
    """Deletes the delivery of the message at `seq`; the log sets `found` if there was one.

    The log also marks the message: replies that are opened later are `is_cancelled`, for as long as it keeps
    idempotency keys.
    """

    topic: TopicKey
    seq: int
    found: bool = False


@dataclass(slots=True, eq=False)
class Fork:
    """Begins a new epoch of a log that has lost entries; positions of the former one become invalid.

    Nothing happens if the log's epoch is no longer `epoch`. Otherwise the log sets `position` to the end of
    the log in the new epoch, in which the entries of the same transaction are written.
    """

    topic: TopicKey
    epoch: str
    #: An edge's link proved the loss, rather than a client, who may say anything.
    is_proved: bool = False
    position: Position | None = None


class DeliveredPosition(NamedTuple):
    """Position up to which a user was delivered a conversation's messages."""

    topic: TopicKey
    user: str
    position: Position


@dataclass(slots=True, eq=False)
class Transaction:
    """Records that are committed together: all of them or none."""

    entries: list[PendingEntry] = field(default_factory=list)
    #: Ids of settled deliveries.
    settled: list[int] = field(default_factory=list)
    attempts: list[Attempts] = field(default_factory=list)
    dead_lettered: list[DeadLettered] = field(default_factory=list)
    withdrawn: list[Withdrawal] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    delivered: list[DeliveredPosition] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)

    def join(self, other: Transaction) -> None:
        """Add the records of another transaction to this one."""
        self.entries += other.entries
        self.settled += other.settled
        self.attempts += other.attempts
        self.dead_lettered += other.dead_lettered
        self.withdrawn += other.withdrawn
        self.checkpoints += other.checkpoints
        self.delivered += other.delivered

    def drop_topic(self, topic: TopicKey) -> None:
        """Drop records that refer to positions in an erased log."""
        self.withdrawn = [each for each in self.withdrawn if each.topic != topic]
        self.checkpoints = [each for each in self.checkpoints if each.topic != topic]
        self.delivered = [each for each in self.delivered if each.topic != topic]


class PageRequest(NamedTuple):
    """Request for a page of one topic's log.

    `after` reads forward from a position, `before` backward; at most one of them is set. With neither, the
    newest entries are read.
    """

    topic: TopicKey
    limit: int
    after: Position | None = None
    before: Position | None = None
    #: Bound of the entries' bytes together; the first entry is always included.
    max_bytes: int = 1 << 20
    #: Leave out changes and reads; they do not count towards `limit`.
    messages_only: bool = False


class Entry(NamedTuple):
    """One entry of a log.

    A change comes with the present message if the page's reader may lack it: always for an edit, and for an
    end if the message stands before the page. It comes without a message that is pruned.
    """

    seq: int
    kind: EntryKind
    body: bytes


class Page(NamedTuple):
    """Entries of one log, oldest first.

    `head` is the end of the log at the time of the read. If the requested position is not one of this log
    (another epoch, or beyond the end), `valid` is False and there are no entries.
    """

    entries: list[Entry]
    #: More entries follow in the requested direction.
    more: bool
    head: Position
    valid: bool = True
    #: The log has lost entries: it begins with some of a former epoch.
    is_forked: bool = False
    #: Seq of an entry in the page's range that is damaged on disk, so that the page is not valid; 0 for none.
    damaged_seq: int = 0


#: Progress of work across many logs; opaque to all but the engine.
Cursor = tuple[int, ...]


class ErasedPiece(NamedTuple):
    """Result of one step of an erasure."""

    messages: int
    receipts: int = 0
    #: Logs that were erased as a whole: their next message starts a new epoch.
    topics: tuple[TopicKey, ...] = ()
    #: Argument of the next step; None if the erasure is complete.
    cursor: Cursor | None = None


class HistoryLimits(NamedTuple):
    """Retention of each log of a tenant; 0 keeps everything."""

    max_age_ms: int = 0
    max_messages: int = 0
    max_bytes: int = 0
