"""Trunkline from Python: `Client` for what users do, `Backend` for backends, `Worker` for agents."""

from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.agent_service_pb2 import Reply
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.message_pb2 import Author, Message, MessageState, Part, Role

from trunkline_client.backend import Backend, broadcast_request
from trunkline_client.builders import (
    address,
    address_name,
    conversation,
    conversation_name,
    parts,
    text,
    text_of,
)
from trunkline_client.channel import load_credentials, load_credentials_from_environment
from trunkline_client.client import Client
from trunkline_client.clock import Clock
from trunkline_client.edge_socket import ClientSettings
from trunkline_client.errors import (
    AlreadyAnswered,
    Closed,
    Disconnected,
    Fenced,
    QueueFull,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TimedOut,
    TrunklineError,
    Unreachable,
)
from trunkline_client.events import (
    Ack,
    CancelResult,
    Delta,
    Event,
    GroupJoined,
    GroupLeft,
    HistoryPage,
    MessageChanged,
    MessagesLost,
    Snapshot,
)
from trunkline_client.handler import Handler, HandlerResult
from trunkline_client.message_writer import MessageWriter
from trunkline_client.open_message import OpenMessage
from trunkline_client.outcomes import Reject, RetryLater
from trunkline_client.publisher import Publisher
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.worker import Worker

__all__ = [
    "Ack",
    "Address",
    "AlreadyAnswered",
    "Author",
    "Backend",
    "BroadcastRequest",
    "BroadcastResponse",
    "CancelResult",
    "Client",
    "ClientSettings",
    "Clock",
    "Closed",
    "Conversation",
    "Delta",
    "Disconnected",
    "Event",
    "Fenced",
    "GroupJoined",
    "GroupLeft",
    "Handler",
    "HandlerResult",
    "HistoryPage",
    "Message",
    "MessageChanged",
    "MessageState",
    "MessageWriter",
    "MessagesLost",
    "OpenMessage",
    "Part",
    "Position",
    "Publisher",
    "QueueFull",
    "Refused",
    "Reject",
    "Reply",
    "ReplyCancelled",
    "ReplyExpired",
    "ReplyStream",
    "RetryLater",
    "Role",
    "Snapshot",
    "StreamedReply",
    "TimedOut",
    "TopicPosition",
    "TrunklineError",
    "Unreachable",
    "Worker",
    "address",
    "address_name",
    "broadcast_request",
    "conversation",
    "conversation_name",
    "load_credentials",
    "load_credentials_from_environment",
    "parts",
    "text",
    "text_of",
]
