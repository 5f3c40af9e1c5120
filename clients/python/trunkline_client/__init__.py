"""Trunkline from Python: `Client` for what users do, `Backend` for backends, `Worker` for agents."""

from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.agent_service_pb2 import Reply
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.message_pb2 import Author, Message, MessageState, Part, Role

from trunkline_client.backend import Backend, broadcast_request
from trunkline_client.backoff import Timing
from trunkline_client.client import Client
from trunkline_client.connecting import ClientSettings
from trunkline_client.errors import (
    Closed,
    Disconnected,
    Overfull,
    Refused,
    TimedOut,
    TrunklineError,
    Unreachable,
)
from trunkline_client.events import Ack, Event, HistoryPage, Joined, Left, Lost
from trunkline_client.publisher import Publisher
from trunkline_client.replies import Handler, Returned
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
    "Author",
    "Backend",
    "BroadcastRequest",
    "BroadcastResponse",
    "Client",
    "ClientSettings",
    "Closed",
    "Conversation",
    "Disconnected",
    "Event",
    "Handler",
    "HistoryPage",
    "Joined",
    "Left",
    "Lost",
    "Message",
    "MessageState",
    "Overfull",
    "Part",
    "Position",
    "Publisher",
    "Refused",
    "Reply",
    "Returned",
    "Role",
    "TimedOut",
    "Timing",
    "TopicPosition",
    "TrunklineError",
    "Unreachable",
    "Worker",
    "address",
    "address_name",
    "broadcast_request",
    "conversation",
    "conversation_name",
    "parts",
    "text",
    "text_of",
]
