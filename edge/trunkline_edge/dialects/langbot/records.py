"""Records: messages in LangBot's form, live and in lists."""

from __future__ import annotations

import re
import zlib
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON, Conversation
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    Message,
)

from trunkline_edge.dialects.langbot.chain import chain_of, content_of

PLATFORM = "langbot"
#: All connections of one pipeline and session type share this conversation.
CONVERSATION_ID = "langbot"
SESSION_TYPES = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
BAD_SESSION_TYPE = "session_type must be person or group"
BAD_SESSION_ID = "Valid session_id is required"
NO_BOT = "Bot not found or not available"
#: Texts of LangBot's errors for what a client asks to connect to.
CONNECT_PROBLEMS = (BAD_SESSION_TYPE, BAD_SESSION_ID, NO_BOT)

#: Ids that the edge assigns to messages of LangBot's clients: connection id and number.
_ASSIGNED_ID = re.compile(r"(c[0-9a-f]{24})-\d+")

#: Texts of replies that ended early and empty, by state.
_EMPTY_REPLIES = {
    MESSAGE_STATE_CANCELLED: "The reply was cancelled",
    MESSAGE_STATE_FAILED: "The reply failed",
    MESSAGE_STATE_EXPIRED: "The reply was interrupted",
}


def conversation(session_type: str) -> Conversation:
    """The conversation of a session type, one of SESSION_TYPES."""
    return Conversation(kind=SESSION_TYPES[session_type], id=CONVERSATION_ID)


def session_type_of(conversation: Conversation) -> str:
    """The session type of a conversation."""
    return "group" if conversation.kind == CONVERSATION_KIND_GROUP else "person"


def iso(time: datetime | Timestamp) -> str:
    """ISO 8601 with microseconds and the offset of UTC."""
    if isinstance(time, Timestamp):
        time = time.ToDatetime(UTC)
    return time.isoformat(timespec="microseconds")


def record_of(message: Message) -> dict[str, Any] | None:
    """The record; None for a recalled message, and for an open one that is still empty."""
    if message.state == MESSAGE_STATE_RECALLED:
        return None
    chain = chain_of(message.parts)
    if not chain and message.state == MESSAGE_STATE_OPEN:
        return None
    if not chain and message.state in _EMPTY_REPLIES:
        chain = [{"type": "Plain", "text": message.error.message or _EMPTY_REPLIES[message.state]}]
    assigned = _ASSIGNED_ID.fullmatch(message.client_id)
    by_user = message.author.role == ROLE_USER
    return {
        "id": _number(message),
        "role": "user" if by_user else "assistant",
        "content": content_of(chain),
        "message_chain": chain,
        "timestamp": iso(message.created_at),
        "is_final": message.state != MESSAGE_STATE_OPEN,
        "connection_id": assigned.group(1) if by_user and assigned else "",
    }


def _number(message: Message) -> int:
    """A number for the message: its seq in the conversation's log.

    A message of another log gets a number beyond any seq: its time in milliseconds, and three digits of a
    hash of its id. JavaScript can hold it exactly.
    """
    if message.address.HasField("conversation") and message.HasField("position"):
        return message.position.seq
    return message.created_at.ToMilliseconds() * 1000 + zlib.crc32(message.id.encode()) % 1000
