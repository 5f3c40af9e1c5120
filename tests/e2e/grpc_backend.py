"""Backend on generated synchronous gRPC stubs, without the client library."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON, Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2 import ListMessagesRequest, ResetConversationRequest
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.message_pb2 import Message, MessageState, Role
from trunkline.v1.presence_service_pb2 import (
    CloseConnectionsRequest,
    Connection,
    CountConnectionsRequest,
    GetStatsRequest,
    GetStatsResponse,
    ListConnectionsRequest,
    ListTopicsRequest,
)
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceStub

from tests.support.patience import patient
from tests.support.processes import OPERATOR_KEY
from tests.validators.history import Acked, History, LogEntry, LogPosition, Rejected, Sent

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

TIMEOUT_S = patient(15)
#: Metadata of calls that take the operator's key.
AS_OPERATOR = (("authorization", f"Bearer {OPERATOR_KEY}"),)


def address(name: str) -> Address:
    """Parse a path such as `demo/echo/web/group:team`, `demo/echo` or `demo/user:bob` into an address."""
    tenant, *rest = name.split("/")
    found = Address(tenant=tenant)
    for index, part in enumerate(rest):
        kind, colon, ident = part.partition(":")
        if not colon:
            setattr(found, ("agent", "platform")[index], part)
        elif kind in ("user", "connection"):
            setattr(found, kind, ident)
        else:
            kinds = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
            found.conversation.kind = kinds[kind]
            found.conversation.id = ident
    return found


def path_of(address: Address) -> str:
    """Return the path of an address: the inverse of `address`."""
    parts = [part for part in (address.tenant, address.agent, address.platform) if part]
    if address.HasField("conversation"):
        kind = "person" if address.conversation.kind == CONVERSATION_KIND_PERSON else "group"
        parts.append(f"{kind}:{address.conversation.id}")
    if address.HasField("user"):
        parts.append(f"user:{address.user}")
    return "/".join(parts)


def text_of(message: Message) -> str:
    """Return the text of a message."""
    return "".join(part.text.text for part in message.parts)


def reason_of(error: grpc.RpcError) -> str:
    """Return the error code of the catalogue in an RPC error; empty if there is none."""
    for name, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if name == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


class ApiKeyInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Adds an API key to each call."""

    def __init__(self, key: str) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """See grpc.UnaryUnaryClientInterceptor."""
        return continuation(details._replace(metadata=self._metadata), request)


class GrpcBackend:
    """Calls a router; records messages sent with a key and their outcome in a history."""

    def __init__(
        self, router: str, history: History | None = None, name: str = "demo/backend", key: str = ""
    ) -> None:
        self.history = history if history is not None else History()
        self.name = name
        self.channel = grpc.insecure_channel(router, options=[("grpc.enable_retries", 0)])
        if key:
            self.channel = grpc.intercept_channel(self.channel, ApiKeyInterceptor(key))
        self.broadcast_stub = BroadcastServiceStub(self.channel)
        self.history_service = HistoryServiceStub(self.channel)
        self.presence = PresenceServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def broadcast(self, to: str, text: str, key: str = "", **options: Any) -> BroadcastResponse:
        """Broadcast a text; recorded if it has a key."""
        request = BroadcastRequest(address=address(to), idempotency_key=key, **options)
        request.parts.add().text.text = text
        if key:
            sent = Sent(
                client=self.name, session=self.name, topic=to, id=key, content=text, at=time.monotonic()
            )
            self.history.events.append(sent)
        try:
            response = self.broadcast_stub.Broadcast(request, timeout=TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            refused = Rejected(client=self.name, session=self.name, id=key, code=reason_of(error))
            self.history.events.append(refused)
            raise
        if key:
            self._acked(to, key, response)
        return response  # type: ignore[no-any-return]

    def _acked(self, to: str, key: str, response: BroadcastResponse) -> None:
        place = LogPosition(response.position.epoch, response.position.seq)
        self.history.events.append(
            Acked(
                client=self.name,
                session=self.name,
                topic=to,
                id=key,
                message_id=response.message_id,
                position=place,
            )
        )

    def messages(self, topic: str) -> list[Message]:
        """Return the whole log of a topic."""
        request = ListMessagesRequest(address=address(topic), limit=500)
        request.after.SetInParent()
        found: list[Message] = []
        while True:
            page = self.history_service.ListMessages(request, timeout=TIMEOUT_S, wait_for_ready=True)
            found.extend(page.messages)
            if not page.more:
                return found
            request.after.CopyFrom(page.messages[-1].position)

    def read_logs(self, *topics: str) -> None:
        """Add the logs of topics to the history."""
        for topic in topics:
            self.history.log += [_logged(topic, message) for message in self.messages(topic)]

    def reset(self, topic: str) -> int:
        """Erase a log and record its epoch as erased."""
        self.history.erased |= {message.position.epoch for message in self.messages(topic)}
        request = ResetConversationRequest(address=address(topic))
        call = self.history_service.ResetConversation
        return int(call(request, timeout=TIMEOUT_S, metadata=AS_OPERATOR).erased)

    def close_connections(self, request: CloseConnectionsRequest) -> int:
        """Close connections; return their number."""
        call = self.presence.CloseConnections
        return int(call(request, timeout=TIMEOUT_S, metadata=AS_OPERATOR).connections)

    def count(self, to: str) -> tuple[int, int]:
        """Count the connections that match an address, and their users."""
        request = CountConnectionsRequest(address=address(to))
        found = self.presence.CountConnections(request, timeout=TIMEOUT_S, wait_for_ready=True)
        return found.connections, found.users

    def topic_counts(self, within: str, page_size: int = 0) -> dict[str, int]:
        """Return the number of connections per topic at and below an address, in the router's order."""
        request = ListTopicsRequest(address=address(within), page_size=page_size)
        counts: dict[str, int] = {}
        while True:
            page = self.presence.ListTopics(request, timeout=TIMEOUT_S, wait_for_ready=True)
            assert len(page.topics) <= (page_size or 100)
            counts |= {path_of(topic.address): topic.connections for topic in page.topics}
            if not page.more:
                return counts
            request.after.CopyFrom(page.topics[-1].address)

    def connections(self, to: str) -> list[Connection]:
        """Return the connections that match an address."""
        request = ListConnectionsRequest(address=address(to), page_size=1000)
        return list(
            self.presence.ListConnections(request, timeout=TIMEOUT_S, wait_for_ready=True).connections
        )

    def stats(self, tenant: str = "demo") -> GetStatsResponse:
        """Return the statistics of a tenant."""
        return self.presence.GetStats(  # type: ignore[no-any-return]
            GetStatsRequest(tenant=tenant), timeout=TIMEOUT_S, wait_for_ready=True
        )


def _logged(topic: str, message: Message) -> LogEntry:
    return LogEntry(
        topic=topic,
        position=LogPosition(message.position.epoch, message.position.seq),
        message_id=message.id,
        role=Role.Name(message.author.role).removeprefix("ROLE_").lower(),
        author=message.author.user,
        client_id=message.client_id,
        content=text_of(message),
        reply_to=message.reply_to,
        state=MessageState.Name(message.state).removeprefix("MESSAGE_STATE_").lower(),
    )
