"""Removes an erased user from stored entries."""

from __future__ import annotations

from typing import Any

from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_RECALLED, Author, Change, Message

from trunkline_router.core.values.topics import Position, address_of
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
