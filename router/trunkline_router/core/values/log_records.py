"""What the core hands to the log and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from trunkline.v1.address_pb2 import Position as PositionProto
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import Change, Message

from trunkline_router.core.values.topics import Position, TopicKey


class AppendResult(Enum):
    """What became of an entry."""

    PENDING = 0
    COMMITTED = 1
    #: The key was used before for the same content: the entry now shows the first one's outcome.
    DUPLICATE = 2
    #: The key was used before for other content: nothing was written.
    MISMATCH = 3
    #: Only a repeat was to be answered, and the key was not used before: nothing was written.
    NO_REPEAT = 4


class EntryKind(IntEnum):
    """What an entry of a log is; its body is serialized accordingly."""

    #: A Message in its present form, which later entries may change.
    MESSAGE = 0
    #: A Change of an earlier message, without the message.
    CHANGE = 1
    #: A ReadFrame.
    READ = 2

    @property
    def frame_field(self) -> str:
        """The field of a ServerFrame in which it is told."""
        return _FRAME_FIELDS[self]


_FRAME_FIELDS = ("message", "change", "read")


class Producer(NamedTuple):
    """Who may add to an open message."""

    name: str
    #: Rises each time the message is taken up; only the highest may write.
    epoch: int


@dataclass(slots=True, eq=False)
class PendingEntry:
    """An entry on its way to the log: a message, or, where `change` or `read` is set, one of these.

    The log completes it in place: `verdict`, `stored`, and

    - of a message its `id`, `position` and `created_at`, and `delivery_id` where `deliver` is set;
    - of a change its `position` and `changed_at`; `message` is then the message as it is from now on,
      which the log stores in the place where it stands, with `updated_at`;
    - of a read its `at`; the user's receipt is stored with it.

    For a DUPLICATE `message.id`, `message.position` and `connections`, or `change.position`, become
    those of the first.
    """

    topic: TopicKey
    message: Message
    #: Idempotency: 16 bytes that name scope and key; None for a message without a key.
    key: bytes | None = None
    #: 8 bytes that tell one content from another; compared where a key comes again. Empty in an entry
    #: that is `repeat_only` and asks for the key alone.
    digest: bytes = b""
    #: Connections that the address matched when the message was taken.
    connections: int = 0
    #: Not to be written: if the key was used before, it is answered again, and else NO_REPEAT.
    repeat_only: bool = False
    #: The message is work for its agent: a delivery is stored with it.
    deliver: bool = False
    #: The message is OPEN, and this is who may add to it.
    producer: Producer | None = None
    #: What is written is this change. Where the message has ended, it is open no longer in the log.
    change: Change | None = None
    #: What is written is this.
    read: ReadFrame | None = None
    result: AppendResult = AppendResult.PENDING
    delivery_id: int = 0
    #: The entry's body as stored, set when it is COMMITTED.
    stored: bytes = b""
    #: Whom to tell; the log does not look at it.
    listener: Any = None
    #: About the size of the message, for the bounds of queues.
    size: int = 0

    @property
    def kind(self) -> EntryKind:
        """What is written."""
        if self.change is not None:
            return EntryKind.CHANGE
        return EntryKind.MESSAGE if self.read is None else EntryKind.READ

    @property
    def position(self) -> PositionProto:
        """The entry's own position; set by the log."""
        if self.change is not None:
            return self.change.position
        return self.message.position if self.read is None else self.read.at


class Checkpoint(NamedTuple):
    """What was added to an open message, or who may add to it from now on."""

    topic: TopicKey
    #: Where the message stands.
    seq: int
    producer: Producer
    #: Serialized ReplyDeltas, those that follow what was checkpointed before; empty for none.
    deltas: bytes = b""


class Attempts(NamedTuple):
    """A delivery failed, and is to be tried again."""

    delivery_id: int
    attempts: int


class DeadLettered(NamedTuple):
    """A delivery becomes a dead letter."""

    delivery_id: int
    attempts: int
    reason: str


@dataclass(slots=True, eq=False)
class Withdrawal:
    """Nobody wants an answer to the message that stands there; `found` where one was still due."""

    topic: TopicKey
    seq: int
    found: bool = False


class DeliveredPosition(NamedTuple):
    """A user was given a conversation's messages up to here."""

    topic: TopicKey
    user: str
    position: Position


@dataclass(slots=True, eq=False)
class Transaction:
    """What is committed together: all of it or nothing."""

    entries: list[PendingEntry] = field(default_factory=list)
    #: Deliveries that are done.
    settled: list[int] = field(default_factory=list)
    attempts: list[Attempts] = field(default_factory=list)
    dead_lettered: list[DeadLettered] = field(default_factory=list)
    #: Deliveries that are done without an answer.
    withdrawn: list[Withdrawal] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    delivered: list[DeliveredPosition] = field(default_factory=list)

    def join(self, other: Transaction) -> None:
        """Commit the other one with this."""
        self.entries += other.entries
        self.settled += other.settled
        self.attempts += other.attempts
        self.dead_lettered += other.dead_lettered
        self.withdrawn += other.withdrawn
        self.checkpoints += other.checkpoints
        self.delivered += other.delivered

    def drop_topic(self, topic: TopicKey) -> None:
        """Leave out what is about places in a log that was erased."""
        self.withdrawn = [each for each in self.withdrawn if each.topic != topic]
        self.checkpoints = [each for each in self.checkpoints if each.topic != topic]
        self.delivered = [each for each in self.delivered if each.topic != topic]


class PageRequest(NamedTuple):
    """A page of one topic's log.

    `after` reads forward from a position, `before` backward; at most one of them is set, and with
    neither the newest messages are read.
    """

    topic: TopicKey
    limit: int
    after: Position | None = None
    before: Position | None = None
    #: Stop before the entries add up to more than this; the first one is always read.
    max_bytes: int = 1 << 20
    #: Changes and reads are left out, and count for nothing.
    messages_only: bool = False


class Entry(NamedTuple):
    """One entry of a log.

    A change that is read carries the message in its present form where the reader of the page may not
    have that: always for an edit, and for an end where the message stands before the page. It comes without
    the message where that is pruned.
    """

    seq: int
    kind: EntryKind
    body: bytes


class Page(NamedTuple):
    """Entries of one log, oldest first.

    `head` is the end of the log as of the same read. Where the request's position is not one of this
    log (another epoch, or beyond the end) `valid` is False and there are no entries.
    """

    entries: list[Entry]
    #: There are more in the direction that was asked for.
    more: bool
    head: Position
    valid: bool = True


class StoredOpen(NamedTuple):
    """A message that is open in the log."""

    topic: TopicKey
    #: The serialized Message, as it was opened.
    message: bytes
    producer: Producer
    #: Serialized ReplyDeltas, in order.
    deltas: list[bytes]


class StoredDelivery(NamedTuple):
    """A delivery that no worker has settled."""

    delivery_id: int
    topic: TopicKey
    #: The serialized Message.
    message: bytes
    #: How often it was delivered before and failed.
    attempts: int = 0


class StoredDeadLetter(NamedTuple):
    """A delivery that was given up."""

    delivery_id: int
    #: The serialized Message.
    message: bytes
    attempts: int
    reason: str
    given_up_ms: int


class StoredReceipt(NamedTuple):
    """How far a user has come in a conversation; 0 for nothing."""

    user: str
    delivered: int
    read: int
    updated_ms: int


class Backlog(NamedTuple):
    """What of one agent no worker has settled."""

    agent: str
    waiting: int
    #: When what the oldest delivers was said; 0 where none waits.
    oldest_ms: int
    #: Given up.
    dead: int = 0


class StoredTenant(NamedTuple):
    """A tenant that was declared."""

    tenant: str
    #: A TenantState.
    state: int
    #: The serialized TenantSettings, with all secrets.
    settings: bytes
    created_ms: int
    updated_ms: int


class StoredApiKey(NamedTuple):
    """An API key, as far as anybody knows it but its owner."""

    key_id: str
    tenant: str
    name: str
    #: SHA-256 of the secret.
    digest: bytes
    #: Values of Scope, in order.
    scopes: tuple[int, ...]
    created_ms: int
    #: 0 where it was never used.
    used_ms: int = 0


class RevocationKind(IntEnum):
    """What a revocation is about."""

    USER = 1
    TOKEN_ID = 2
    ALL = 3


class StoredRevocation(NamedTuple):
    """Tokens of a tenant's clients that were taken back; there is one of each kind and name, the latest."""

    tenant: str
    kind: RevocationKind
    #: The user or the token's id; empty for ALL.
    name: str
    #: Those issued before this are meant; 0 for a token's id.
    issued_before_ms: int
    revoked_ms: int


@dataclass(slots=True)
class Registered:
    """All tenants, with what was given to them and taken back."""

    tenants: list[StoredTenant] = field(default_factory=list)
    api_keys: list[StoredApiKey] = field(default_factory=list)
    revocations: list[StoredRevocation] = field(default_factory=list)


@dataclass(slots=True)
class Registration:
    """What changes of that: rows to be written in place of those of the same name, and ids of keys to go."""

    tenants: list[StoredTenant] = field(default_factory=list)
    api_keys: list[StoredApiKey] = field(default_factory=list)
    revocations: list[StoredRevocation] = field(default_factory=list)
    #: Ids of keys that are no more.
    keys_gone: list[str] = field(default_factory=list)
    #: When keys were used last; of keys that are gone nothing is written.
    keys_used: list[tuple[str, int]] = field(default_factory=list)
    #: Revocations older than this are forgotten; 0 for none.
    revoked_before_ms: int = 0


#: Where a piece of work on many logs has come to; means something to the engine alone.
Cursor = tuple[int, ...]


class ErasedPiece(NamedTuple):
    """What one piece of an erasure has done."""

    messages: int
    receipts: int = 0
    #: Logs that were erased as a whole: their next message starts a new epoch.
    topics: tuple[TopicKey, ...] = ()
    #: Where to go on; None where all is done.
    cursor: Cursor | None = None


class HistoryLimits(NamedTuple):
    """What is kept of each log of a tenant; 0 for all."""

    max_age_ms: int = 0
    max_messages: int = 0
    max_bytes: int = 0
