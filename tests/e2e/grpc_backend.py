"""A backend on the bare contract: synchronous stubs, as any stranger would generate them."""

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
    Connection,
    CountConnectionsRequest,
    GetStatsRequest,
    GetStatsResponse,
    ListConnectionsRequest,
    ListTopicsRequest,
)
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceStub

from tests.support.patience import patient
from tests.validators.history import Acked, History, LogEntry, LogPosition, Rejected, Sent

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

TIMEOUT_S = patient(15)


def address(name: str) -> Address:
    """The address that a path names: `demo/echo/web/group:team`, `demo/echo`, `demo/user:bob`, …"""
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
    """The path that names an address: the inverse of `address`."""
    parts = [part for part in (address.tenant, address.agent, address.platform) if part]
    if address.HasField("conversation"):
        kind = "person" if address.conversation.kind == CONVERSATION_KIND_PERSON else "group"
        parts.append(f"{kind}:{address.conversation.id}")
    if address.HasField("user"):
        parts.append(f"user:{address.user}")
    return "/".join(parts)


def text_of(message: Message) -> str:
    """The words of a message."""
    return "".join(part.text.text for part in message.parts)


def reason_of(error: grpc.RpcError) -> str:
    """The catalogue's code in a refusal; empty where there is none."""
    for name, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if name == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


class ApiKeyInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Shows a key with each call."""

    def __init__(self, key: str) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """See grpc."""
        return continuation(details._replace(metadata=self._metadata), request)


class GrpcBackend:
    """Calls a router and records what it says and is told."""

    def __init__(
        self, router: str, history: History | None = None, name: str = "demo/backend", key: str = ""
    ) -> None:
        self.history = history if history is not None else History()
        self.name = name
        self.channel = grpc.insecure_channel(router, options=[("grpc.enable_retries", 0)])
        if key:
            self.channel = grpc.intercept_channel(self.channel, ApiKeyInterceptor(key))
        self.broadcasting = BroadcastServiceStub(self.channel)
        self.history_service = HistoryServiceStub(self.channel)
        self.presence = PresenceServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def broadcast(self, to: str, text: str, key: str = "", **options: Any) -> BroadcastResponse:
        """Say something; recorded where it has a key."""
        request = BroadcastRequest(address=address(to), idempotency_key=key, **options)
        request.parts.add().text.text = text
        if key:
            said = Sent(client=self.name, life=self.name, topic=to, id=key, content=text, at=time.monotonic())
            self.history.events.append(said)
        try:
            response = self.broadcasting.Broadcast(request, timeout=TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            refused = Rejected(client=self.name, life=self.name, id=key, code=reason_of(error))
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
                life=self.name,
                topic=to,
                id=key,
                message_id=response.message_id,
                place=place,
            )
        )

    def messages(self, topic: str) -> list[Message]:
        """The whole log of a topic."""
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
        """Put what the logs hold into the history."""
        for topic in topics:
            self.history.log += [_logged(topic, message) for message in self.messages(topic)]

    def reset(self, topic: str) -> int:
        """Erase a log, and remember which life of it that was."""
        self.history.erased |= {message.position.epoch for message in self.messages(topic)}
        request = ResetConversationRequest(address=address(topic))
        return int(self.history_service.ResetConversation(request, timeout=TIMEOUT_S).erased)

    def count(self, to: str) -> tuple[int, int]:
        """Connections that an address matches, and users behind them."""
        request = CountConnectionsRequest(address=address(to))
        found = self.presence.CountConnections(request, timeout=TIMEOUT_S, wait_for_ready=True)
        return found.connections, found.users

    def heard(self, within: str, page_size: int = 0) -> dict[str, int]:
        """What is heard at an address and within it, and by how many; in the order told."""
        request = ListTopicsRequest(address=address(within), page_size=page_size)
        heard: dict[str, int] = {}
        while True:
            page = self.presence.ListTopics(request, timeout=TIMEOUT_S, wait_for_ready=True)
            assert len(page.topics) <= (page_size or 100)
            heard |= {path_of(topic.address): topic.connections for topic in page.topics}
            if not page.more:
                return heard
            request.after.CopyFrom(page.topics[-1].address)

    def connections(self, to: str) -> list[Connection]:
        """The connections that an address matches."""
        request = ListConnectionsRequest(address=address(to), page_size=1000)
        return list(
            self.presence.ListConnections(request, timeout=TIMEOUT_S, wait_for_ready=True).connections
        )

    def stats(self, tenant: str = "demo") -> GetStatsResponse:
        """What the tenant has."""
        return self.presence.GetStats(  # type: ignore[no-any-return]
            GetStatsRequest(tenant=tenant), timeout=TIMEOUT_S, wait_for_ready=True
        )


def _logged(topic: str, message: Message) -> LogEntry:
    return LogEntry(
        topic=topic,
        place=LogPosition(message.position.epoch, message.position.seq),
        message_id=message.id,
        role=Role.Name(message.author.role).removeprefix("ROLE_").lower(),
        author=message.author.user,
        client_id=message.client_id,
        content=text_of(message),
        reply_to=message.reply_to,
        state=MessageState.Name(message.state).removeprefix("MESSAGE_STATE_").lower(),
    )
