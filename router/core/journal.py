"""What the core hands to the log and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from trunkline.v1.message_pb2 import Message

from router.core.topics import Position, TopicKey


class Verdict(Enum):
    """What became of a draft."""

    PENDING = 0
    COMMITTED = 1
    #: The key was used before for the same content: the draft now shows the first one's outcome.
    DUPLICATE = 2
    #: The key was used before for other content: nothing was written.
    MISMATCH = 3
    #: Only a repeat was to be answered, and the key was not used before: nothing was written.
    NO_REPEAT = 4


@dataclass(slots=True, eq=False)
class Draft:
    """A message on its way to the log.

    The log completes it in place: `message.id`, `message.position` and `message.created_at`,
    `verdict`, and `delivery_id` where `deliver` is set. For a DUPLICATE `message.id`,
    `message.position` and `connections` become those of the first.
    """

    topic: TopicKey
    message: Message
    #: Idempotency: 16 bytes that name scope and key; None for a message without a key.
    key: bytes | None = None
    #: 8 bytes that tell one content from another; compared where a key comes again.
    digest: bytes = b""
    #: Connections that the address matched when the message was taken.
    connections: int = 0
    #: Not to be written: if the key was used before, it is answered again, and else NO_REPEAT.
    repeat_only: bool = False
    #: The message is work for its agent: a delivery is stored with it.
    deliver: bool = False
    verdict: Verdict = Verdict.PENDING
    delivery_id: int = 0
    #: The message as stored, set when it is COMMITTED.
    stored: bytes = b""
    #: Whom to tell; the log does not look at it.
    origin: Any = None
    #: About the size of the message, for the bounds of queues.
    size: int = 0


class PageRequest(NamedTuple):
    """A page of one topic's log.

    `after` reads forward from a position, `before` backward; at most one of them is set, and with
    neither the newest messages are read.
    """

    topic: TopicKey
    limit: int
    after: Position | None = None
    before: Position | None = None
    #: Stop before the messages add up to more than this; the first one is always read.
    max_bytes: int = 1 << 20


class Page(NamedTuple):
    """Messages of one log, oldest first, as (seq, serialized Message).

    `head` is the end of the log as of the same read. Where the request's position is not one of this
    log (another epoch, or beyond the end) `valid` is False and there are no messages.
    """

    messages: list[tuple[int, bytes]]
    more: bool
    head: Position
    valid: bool = True


class StoredDelivery(NamedTuple):
    """A delivery that no worker has settled."""

    delivery_id: int
    topic: TopicKey
    #: The serialized Message.
    message: bytes


class Backlog(NamedTuple):
    """What of one agent no worker has settled."""

    agent: str
    waiting: int
    oldest_ms: int
