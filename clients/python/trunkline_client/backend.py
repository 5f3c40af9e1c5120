"""What a backend asks of a router: to say something, to read logs, to know who is connected."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
from trunkline.v1.address_pb2 import Address, Position
from trunkline.v1.agent_service_pb2 import (
    ListDeadLettersRequest,
    ListDeadLettersResponse,
    ReplayDeadLettersRequest,
)
from trunkline.v1.agent_service_pb2_grpc import AgentServiceStub
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastRequest,
    BroadcastResponse,
    CancelMessageRequest,
    OpenMessageRequest,
)
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2 import (
    EditMessageRequest,
    GetMessageRequest,
    ListMessagesRequest,
    ListMessagesResponse,
    ListReceiptsRequest,
    ListReceiptsResponse,
    RecallMessageRequest,
    ResetConversationRequest,
)
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.message_pb2 import Author, Message, MessageState
from trunkline.v1.presence_service_pb2 import (
    CloseConnectionsRequest,
    Connection,
    ConnectionChange,
    CountConnectionsRequest,
    CountConnectionsResponse,
    GetStatsRequest,
    GetStatsResponse,
    ListConnectionsRequest,
    ListTopicsRequest,
    TopicListeners,
    WatchConnectionsRequest,
    WatchConnectionsResponse,
)
from trunkline.v1.presence_service_pb2_grpc import PresenceServiceStub

from trunkline_client import builders
from trunkline_client.channel import error_from_rpc, open_channel
from trunkline_client.clock import Clock
from trunkline_client.message_writer import OnCancel
from trunkline_client.open_message import OpenMessage
from trunkline_client.publisher import Publisher

T = TypeVar("T")


def broadcast_request(
    address: Address,
    content: builders.Content,
    *,
    author: Author | None = None,
    reply_to: str = "",
    attributes: Mapping[str, str] | None = None,
    idempotency_key: str = "",
    ephemeral: bool = False,
    require_connection: bool = False,
) -> BroadcastRequest:
    """A request for `Backend.broadcast` or a `Publisher`; see `trunkline.v1.BroadcastRequest`."""
    return BroadcastRequest(
        address=address,
        parts=builders.parts(content),
        author=author,
        reply_to=reply_to,
        attributes=dict(attributes or {}),
        idempotency_key=idempotency_key,
        ephemeral=ephemeral,
        require_connection=require_connection,
    )


class Backend:
    """A backend's end of a router, over one gRPC channel.

        async with Backend("127.0.0.1:50051") as backend:
            await backend.broadcast(address(tenant="demo", agent="echo", platform="web"), "hello")

    Each call raises Refused, with the code of the catalogue, or with the name of the gRPC status where
    the call failed before the router could say anything (UNAVAILABLE where it cannot be reached). Calls
    do not retry; those that have an idempotency key are safe to repeat. `timeout_s` bounds every
    unary call.

    With `credentials` the channel is encrypted; `api_key` is shown with every call. See `load_credentials`.
    """

    def __init__(
        self,
        router: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str = "",
        timeout_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._router = router
        self._credentials = credentials
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._clock = clock or Clock()
        self._channel: grpc.aio.Channel | None = None

    def __repr__(self) -> str:
        return f"<Backend of {self._router}>"

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._router, self._credentials, self._api_key)
        self._broadcast = BroadcastServiceStub(self._channel)
        self._history = HistoryServiceStub(self._channel)
        self._presence = PresenceServiceStub(self._channel)
        self._agents = AgentServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the channel and whatever still runs on it. Idempotent."""
        if self._channel is not None:
            await self._channel.close()

    # Saying.

    async def broadcast(
        self,
        address: Address,
        content: builders.Content,
        *,
        author: Author | None = None,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        ephemeral: bool = False,
        require_connection: bool = False,
    ) -> BroadcastResponse:
        """Sends one message to an address; returns once it is on disk.

        Refused with NO_ACTIVE_CONNECTION, and not kept, where `require_connection` and nobody is there.
        """
        request = broadcast_request(
            address,
            content,
            author=author,
            reply_to=reply_to,
            attributes=attributes,
            idempotency_key=idempotency_key,
            ephemeral=ephemeral,
            require_connection=require_connection,
        )
        return await self._call(self._broadcast.Broadcast(request, timeout=self._timeout_s))

    @asynccontextmanager
    async def publisher(self, *, max_unanswered: int = 10_000) -> AsyncIterator[Publisher]:
        """Opens a pipeline of broadcasts, for volume.

        Leaving the context waits for every answer; leaving it by an exception or a cancel fails what is
        unanswered with Disconnected.
        """
        publisher = Publisher(self._broadcast, self._clock, max_unanswered=max_unanswered)
        publisher.start()
        try:
            yield publisher
            await publisher.drain()
        finally:
            await publisher.stop()

    def open_message(
        self,
        address: Address,
        *,
        key: str = "",
        author: Author | None = None,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        producer: str = "",
        on_cancel: OnCancel | None = None,
    ) -> OpenMessage:
        """A message written piece by piece, inside `async with backend.open_message(…) as out:`.

        Opened again with the same `key` within a day it is the same message, and whoever opened it
        before gets Fenced. `producer` names this one for logs.
        """
        request = OpenMessageRequest(
            address=address,
            key=key or uuid.uuid4().hex,
            producer=producer,
            author=author,
            reply_to=reply_to,
            attributes=dict(attributes or {}),
        )
        return OpenMessage(self._broadcast, request, self._clock, self._timeout_s, on_cancel)

    # Changing what was said.

    async def cancel(self, tenant: str, message_id: str) -> MessageState.ValueType:
        """Stops an open message for its readers; returns CANCELLED, or how it had ended before."""
        request = CancelMessageRequest(tenant=tenant, message_id=message_id)
        return (await self._call(self._broadcast.CancelMessage(request, timeout=self._timeout_s))).state

    async def edit(self, tenant: str, message_id: str, content: builders.Content) -> Position:
        """Replaces the parts of a message that has ended; returns the place of the change in the log."""
        request = EditMessageRequest(tenant=tenant, message_id=message_id, parts=builders.parts(content))
        return (await self._call(self._history.EditMessage(request, timeout=self._timeout_s))).position

    async def recall(self, tenant: str, message_id: str) -> Position | None:
        """Takes a message back; returns the place of the change, None where it had been taken back."""
        request = RecallMessageRequest(tenant=tenant, message_id=message_id)
        answer = await self._call(self._history.RecallMessage(request, timeout=self._timeout_s))
        return answer.position if answer.HasField("position") else None

    # What agents gave up.

    async def list_dead_letters(
        self, tenant: str, agent: str, *, after: int = 0, limit: int = 0
    ) -> ListDeadLettersResponse:
        """Reads a page of the deliveries that were given up, oldest first, from after this id."""
        request = ListDeadLettersRequest(tenant=tenant, agent=agent, after=after, page_size=limit)
        return await self._call(self._agents.ListDeadLetters(request, timeout=self._timeout_s))

    async def replay_dead_letters(self, tenant: str, agent: str, delivery_ids: Iterable[int]) -> int:
        """Delivers dead letters again, as if they had just been said; returns how many there were."""
        request = ReplayDeadLettersRequest(tenant=tenant, agent=agent, delivery_ids=delivery_ids)
        return (await self._call(self._agents.ReplayDeadLetters(request, timeout=self._timeout_s))).replayed

    # Reading.

    async def list_messages(
        self,
        address: Address,
        *,
        before: Position | None = None,
        after: Position | None = None,
        limit: int = 0,
    ) -> ListMessagesResponse:
        """Reads a page of a topic's log, oldest first; the newest messages where no position is given."""
        if before is not None and after is not None:
            raise ValueError("a page lies before a position or after one, not both")
        request = ListMessagesRequest(address=address, before=before, after=after, limit=limit)
        return await self._call(self._history.ListMessages(request, timeout=self._timeout_s))

    async def get_message(self, tenant: str, message_id: str) -> Message:
        """Reads one message. Refused with MESSAGE_NOT_FOUND where the tenant has none of this id."""
        request = GetMessageRequest(tenant=tenant, message_id=message_id)
        return (await self._call(self._history.GetMessage(request, timeout=self._timeout_s))).message

    async def list_receipts(
        self, address: Address, *, after: str = "", limit: int = 0
    ) -> ListReceiptsResponse:
        """Reads how far each user has been given, and has read, a conversation; from after this user."""
        request = ListReceiptsRequest(address=address, after=after, page_size=limit)
        return await self._call(self._history.ListReceipts(request, timeout=self._timeout_s))

    async def erase_history(self, address: Address) -> int:
        """Erases a topic's log; returns how many messages it held."""
        request = ResetConversationRequest(address=address)
        return (await self._call(self._history.ResetConversation(request, timeout=self._timeout_s))).erased

    # Who is there.

    async def connections(self, address: Address, *, page_size: int = 0) -> AsyncIterator[list[Connection]]:
        """The connections that an address matches, a page at a time, in the order of their ids."""
        request = ListConnectionsRequest(address=address, page_size=page_size)
        while True:
            page = await self._call(self._presence.ListConnections(request, timeout=self._timeout_s))
            yield list(page.connections)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def count_connections(self, address: Address) -> CountConnectionsResponse:
        """How many connections an address matches, and how many users are behind them."""
        request = CountConnectionsRequest(address=address)
        return await self._call(self._presence.CountConnections(request, timeout=self._timeout_s))

    async def topics(self, address: Address, *, page_size: int = 0) -> AsyncIterator[list[TopicListeners]]:
        """What is heard at an address and within it, with how many hear it; a page at a time, in order."""
        request = ListTopicsRequest(address=address, page_size=page_size)
        while True:
            page = await self._call(self._presence.ListTopics(request, timeout=self._timeout_s))
            yield list(page.topics)
            if not page.more:
                return
            request.after.CopyFrom(page.topics[-1].address)

    async def get_stats(self, tenant: str) -> GetStatsResponse:
        """What a tenant has now, and has done since the router started."""
        return await self._call(
            self._presence.GetStats(GetStatsRequest(tenant=tenant), timeout=self._timeout_s)
        )

    async def close_connections(self, address: Address, *, reason: str = "", reconnect: bool = False) -> int:
        """Closes the connections that an address matches; returns how many.

        With `reconnect` their clients are asked to come back.
        """
        request = CloseConnectionsRequest(address=address, reason=reason, reconnect=reconnect)
        return (
            await self._call(self._presence.CloseConnections(request, timeout=self._timeout_s))
        ).connections

    async def watch_connections(self, address: Address) -> AsyncGenerator[list[ConnectionChange], None]:
        """The connections there are, as one batch of changes, then each that opens or closes.

        Goes on until the caller leaves. Raises Refused where the stream breaks; watch again then, and
        begin with the connections that are told first. Close it (`contextlib.aclosing`) to leave early.
        """
        call = self._presence.WatchConnections(WatchConnectionsRequest(address=address))
        try:
            while isinstance(batch := await self._call(call.read()), WatchConnectionsResponse):
                yield list(batch.changes)
        finally:
            call.cancel()

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
