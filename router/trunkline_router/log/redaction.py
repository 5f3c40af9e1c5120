"""Removes an erased user from stored entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, Author, Change, Message

from trunkline_router.core.values.topics import Position, address_of
from trunkline_router.log.encryption import Encryption, SealedTable, is_sealed
from trunkline_router.log.log_spans import LogSpan
from trunkline_router.log.message_ids import message_id


def redacted_message(
    log: LogSpan, seq: int, written_in: str, created_ms: int, role: Any, now_ms: int
) -> bytes:
    """A serialised RECALLED message that keeps only id, address, position, role and times.

    `written_in` is the epoch of its id.
    """
    message = Message(
        id=message_id(written_in, seq),
        address=address_of(log.topic),
        position=Position(log.epoch, seq).to_proto(),
        author=Author(role=role),
        state=MESSAGE_STATE_RECALLED,
    )
    message.created_at.FromMilliseconds(created_ms)
    message.updated_at.FromMilliseconds(now_ms)
    return message.SerializeToString()


def redacted_change(body: bytes) -> bytes:
    """A serialised Change without the user who made it."""
    change = Change.FromString(body)
    change.author.ClearField("user")
    change.author.ClearField("name")
    return change.SerializeToString()


def redacted_read(body: bytes) -> bytes:
    """A serialised ReadFrame without its user."""
    read = ReadFrame.FromString(body)
    read.ClearField("user")
    return read.SerializeToString()


class AuthoredMessage(NamedTuple):
    """A stored message of a user who is erased."""

    topic_id: int
    seq: int
    created_ms: int
    role: int
    #: Its body is encrypted.
    is_sealed: bool
    #: The former epoch that it was written in; None for the present one.
    written_in: str | None


class AuthoredEvent(NamedTuple):
    """A stored event of a user who is erased."""

    topic_id: int
    seq: int
    #: Kind of change; 0 for a read.
    change: int
    #: The body as stored.
    stored: bytes


class RedactedEntry(NamedTuple):
    """An entry without its user, as it is to be stored."""

    topic_id: int
    seq: int
    body: bytes


def redact_messages(
    encryption: Encryption,
    tenant: str,
    spans: Sequence[LogSpan],
    messages: Iterable[AuthoredMessage],
    now_ms: int,
) -> list[RedactedEntry]:
    """Redact messages in these spans of a tenant's logs.

    Bodies that were encrypted are encrypted again: one use of the tenant's key each must be reserved.
    """
    logs = {span.topic_id: span for span in spans}
    redacted = []
    for topic_id, seq, created_ms, role, was_sealed, written_in in messages:
        log = logs[topic_id]
        body = redacted_message(log, seq, written_in or log.epoch, created_ms, role, now_ms)
        if was_sealed:
            body = encryption.seal(tenant, SealedTable.MESSAGES, topic_id, seq, body)
        redacted.append(RedactedEntry(topic_id, seq, body))
    return redacted


def redact_events(
    encryption: Encryption, tenant: str, events: Iterable[AuthoredEvent]
) -> list[RedactedEntry]:
    """Redact events of a tenant's logs; see redact_messages."""
    redacted = []
    for topic_id, seq, change, stored in events:
        body = encryption.unseal(tenant, SealedTable.EVENTS, topic_id, seq, stored)
        body = (redacted_change if change else redacted_read)(body)
        if is_sealed(stored):
            body = encryption.seal(tenant, SealedTable.EVENTS, topic_id, seq, body)
        redacted.append(RedactedEntry(topic_id, seq, body))
    return redacted
