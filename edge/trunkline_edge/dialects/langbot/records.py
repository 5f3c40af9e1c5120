"""Messages as LangBot's clients are shown them, live and in lists: records."""

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
#: All connections of one pipeline and session type are in one conversation.
CONVERSATION_ID = "langbot"
SESSION_TYPES = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
BAD_SESSION_TYPE = "session_type must be person or group"

#: The id that the edge gives to what a client of LangBot says: its connection's id, and a number.
_GIVEN_ID = re.compile(r"(c[0-9a-f]{24})-\d+")

#: What is shown of a reply that has ended otherwise than whole, and before it had said anything.
_WITHOUT_WORDS = {
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
    """The record; None where there is nothing to show: nothing was said yet, or it was taken back."""
    if message.state == MESSAGE_STATE_RECALLED:
        return None
    chain = chain_of(message.parts)
    if not chain and message.state == MESSAGE_STATE_OPEN:
        return None
    if not chain and message.state in _WITHOUT_WORDS:
        chain = [{"type": "Plain", "text": message.error.message or _WITHOUT_WORDS[message.state]}]
    given = _GIVEN_ID.fullmatch(message.client_id)
    by_user = message.author.role == ROLE_USER
    return {
        "id": _number(message),
        "role": "user" if by_user else "assistant",
        "content": content_of(chain),
        "message_chain": chain,
        "timestamp": iso(message.created_at),
        "is_final": message.state != MESSAGE_STATE_OPEN,
        "connection_id": given.group(1) if by_user and given else "",
    }


def _number(message: Message) -> int:
    """Its place in the conversation's log.

    What is no entry of that log gets a number that none there will ever have: its time, in
    milliseconds, and three more digits made of its id. It is one that JavaScript can hold.
    """
    if message.address.HasField("conversation") and message.HasField("position"):
        return message.position.seq
    return message.created_at.ToMilliseconds() * 1000 + zlib.crc32(message.id.encode()) % 1000
