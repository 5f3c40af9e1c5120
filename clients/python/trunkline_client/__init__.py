"""Trunkline for Python: `Client` for users, `Backend` for backends, `Worker` for agents."""

from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.agent_service_pb2 import AttachWelcome, DeadLetter, ListDeadLettersResponse, Reply
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import (
    DeliveredFrame,
    ErrorFrame,
    ReadFrame,
    ReplyStatus,
    ReplyStatusFrame,
    SignalFrame,
)
from trunkline.v1.history_service_pb2 import ListMessagesResponse, ListReceiptsResponse, Receipt
from trunkline.v1.message_pb2 import Author, Change, Message, MessageState, Part, Role
from trunkline.v1.presence_service_pb2 import (
    Connection,
    ConnectionChange,
    CountConnectionsResponse,
    GetStatsResponse,
    TopicListeners,
)

from trunkline_client.backend import Backend
from trunkline_client.builders import (
    Content,
    WithoutWorkerName,
    address,
    address_name,
    broadcast_request,
    conversation,
    conversation_name,
    parts,
    text,
    text_of,
)
from trunkline_client.client import Client
from trunkline_client.clock import Clock
from trunkline_client.credentials import (
    RouterCredentials,
    load_credentials,
    load_credentials_from_environment,
)
from trunkline_client.errors import (
    AlreadyAnswered,
    Closed,
    Fenced,
    OutcomeUnknown,
    QueueFull,
    Refused,
    ReplyCancelled,
    ReplyExpired,
    TimedOut,
    TransportError,
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
from trunkline_client.handler import Failed, Handler, HandlerResult, Reject, RetryLater
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.message_writer import MessageWriter
from trunkline_client.open_message import OpenMessage
from trunkline_client.publisher import Publisher
from trunkline_client.read_only_backend import ReadOnlyBackend
from trunkline_client.read_only_client import ReadOnlyClient
from trunkline_client.reconnecting_transport import ClientState
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.settings import ClientSettings
from trunkline_client.streamed_reply import StreamedReply
from trunkline_client.token_refresher import TokenSource
from trunkline_client.worker import Worker

__all__ = [
    "Ack",
    "Address",
    "AlreadyAnswered",
    "AttachWelcome",
    "Author",
    "Backend",
    "BroadcastRequest",
    "BroadcastResponse",
    "CancelResult",
    "Change",
    "Client",
    "ClientSettings",
    "ClientState",
    "Clock",
    "Closed",
    "Connection",
    "ConnectionChange",
    "Content",
    "Conversation",
    "CountConnectionsResponse",
    "DeadLetter",
    "DeliveredFrame",
    "Delta",
    "Error",
    "ErrorFrame",
    "Event",
    "Failed",
    "Fenced",
    "GetStatsResponse",
    "GroupJoined",
    "GroupLeft",
    "Handler",
    "HandlerResult",
    "HistoryPage",
    "ListDeadLettersResponse",
    "ListMessagesResponse",
    "ListReceiptsResponse",
    "Message",
    "MessageChanged",
    "MessageState",
    "MessageWriter",
    "MessagesLost",
    "OnCancel",
    "OpenMessage",
    "OutcomeUnknown",
    "Part",
    "Position",
    "Publisher",
    "QueueFull",
    "ReadFrame",
    "ReadOnlyBackend",
    "ReadOnlyClient",
    "Receipt",
    "Refused",
    "Reject",
    "Reply",
    "ReplyCancelled",
    "ReplyExpired",
    "ReplyStatus",
    "ReplyStatusFrame",
    "ReplyStream",
    "RetryLater",
    "Role",
    "RouterCredentials",
    "SignalFrame",
    "Snapshot",
    "StreamedReply",
    "TimedOut",
    "TokenSource",
    "TopicListeners",
    "TopicPosition",
    "TransportError",
    "TrunklineError",
    "Unreachable",
    "WithoutWorkerName",
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
