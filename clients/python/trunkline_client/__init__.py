"""Trunkline from Python: `Client` for what users do, `Backend` for backends, `Worker` for agents."""

from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.agent_service_pb2 import Reply
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.message_pb2 import Author, Message, MessageState, Part, Role

from trunkline_client.backend import Backend, broadcast_request
from trunkline_client.backoff import Timing
from trunkline_client.channel import access, access_from_environment
from trunkline_client.client import Client
from trunkline_client.connecting import ClientSettings
from trunkline_client.errors import (
    AlreadyAnswered,
    Closed,
    Disconnected,
    Fenced,
    Overfull,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TimedOut,
    TrunklineError,
    Unreachable,
)
from trunkline_client.events import (
    Ack,
    Cancelled,
    Changed,
    Delta,
    Event,
    HistoryPage,
    Joined,
    Left,
    Lost,
    Snapshot,
)
from trunkline_client.open_message import OpenMessage
from trunkline_client.outcomes import Reject, RetryLater
from trunkline_client.publisher import Publisher
from trunkline_client.replies import Handler, Returned
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.speaking import Speech
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.wording import (
    address,
    address_name,
    conversation,
    conversation_name,
    parts,
    text,
    text_of,
)
from trunkline_client.worker import Worker

__all__ = [
    "Ack",
    "Address",
    "AlreadyAnswered",
    "Author",
    "Backend",
    "BroadcastRequest",
    "BroadcastResponse",
    "Cancelled",
    "Changed",
    "Client",
    "ClientSettings",
    "Closed",
    "Conversation",
    "Delta",
    "Disconnected",
    "Event",
    "Fenced",
    "Handler",
    "HistoryPage",
    "Joined",
    "Left",
    "Lost",
    "Message",
    "MessageState",
    "OpenMessage",
    "Overfull",
    "Part",
    "Position",
    "Publisher",
    "Refused",
    "Reject",
    "Reply",
    "ReplyCancelled",
    "ReplyExpired",
    "ReplyStream",
    "RetryLater",
    "Returned",
    "Role",
    "Snapshot",
    "Speech",
    "StreamedReply",
    "TimedOut",
    "Timing",
    "TopicPosition",
    "TrunklineError",
    "Unreachable",
    "Worker",
    "access",
    "access_from_environment",
    "address",
    "address_name",
    "broadcast_request",
    "conversation",
    "conversation_name",
    "parts",
    "text",
    "text_of",
]
