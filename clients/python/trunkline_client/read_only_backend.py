"""Calls to a router that only read: history, receipts, presence, dead letters."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

import grpc
from trunkline.v1 import agent_service_pb2 as agents
from trunkline.v1 import history_service_pb2 as histories
from trunkline.v1 import presence_service_pb2 as presence
from trunkline.v1.address_pb2 import Address, Position
from trunkline.v1.message_pb2 import Message

from trunkline_client.clock import Clock
from trunkline_client.router_choice import RouterChoice
from trunkline_client.router_connection import RouterConnection


class ReadOnlyBackend:
    """A connection to a router over one gRPC channel, for calls that change nothing.

        async with ReadOnlyBackend("127.0.0.1:50051") as backend:
            async for connection in backend.connections(address(tenant="demo")):
                print(connection.user)

    An API key with the scopes that read is enough for it; `Backend` adds the calls that change something.
    Calls do not retry. Each raises one of these, and RuntimeError outside the `async with` block:

    - Refused: the router rejected the call.
    - Unreachable: no answer was received within `timeout_s`. A read changes nothing, so retrying is safe
      whether or not the call was sent.

    Args:
        router: The router's `host:port`. Several that share one database are separated by commas: calls go
            to the one that owns the log. A call goes on to another one only if it certainly had no effect.
        credentials: TLS credentials; None leaves the channel unencrypted. See `load_credentials`.
        api_key: Sent with every call; empty sends none.
        use_proxy: Connect through the proxy in grpc_proxy, https_proxy or http_proxy.
        timeout_s: Bound of each unary call, connecting included.
        clock: Time and randomness, for tests.
    """

    def __init__(
        self,
        router: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str = "",
        use_proxy: bool = False,
        timeout_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        RouterChoice(router)
        self._router = router
        self._credentials = credentials
        self._api_key = api_key
        self._use_proxy = use_proxy
        self._timeout_s = timeout_s
        self._clock = clock or Clock()
        self._connection: RouterConnection | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._router}>"

    async def __aenter__(self) -> Self:
        if self._connection is not None:
            raise RuntimeError("The backend is open already: make one for each `async with`")
        self._connection = RouterConnection(
            self._router, self._credentials, self._api_key, self._timeout_s, use_proxy=self._use_proxy
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel and fails the calls under way. Idempotent.

        Raises:
            Nothing.
        """
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    @property
    def _open_connection(self) -> RouterConnection:
        if self._connection is None:
            name = type(self).__name__
            raise RuntimeError(f"The backend is not open: write `async with {name}(…) as backend:`")
        return self._connection

    # History.

    async def list_messages(
        self,
        address: Address,
        *,
        before: Position | None = None,
        after: Position | None = None,
        limit: int = 0,
    ) -> histories.ListMessagesResponse:
        """Reads a page of a topic's log, oldest first; the newest messages without a position.

        Args:
            address: The topic.
            before: End before this position.
            after: Start after this position.
            limit: Size of the page; 0 leaves it to the router.

        Returns:
            The messages, and whether there are more in the direction that was read.

        Raises:
            ValueError: Both `before` and `after` are given.
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        if before is not None and after is not None:
            raise ValueError("a page lies before a position or after one, not both")
        request = histories.ListMessagesRequest(address=address, before=before, after=after, limit=limit)
        connection = self._open_connection
        return await connection.read(connection.history.ListMessages, request)

    async def get_message(self, tenant: str, message_id: str) -> Message:
        """Reads one message.

        Args:
            tenant: The message's tenant.
            message_id: The message.

        Returns:
            The message as it is now.

        Raises:
            Refused: MESSAGE_NOT_FOUND if the tenant has no message of this id.
            Unreachable: See the class.
        """
        request = histories.GetMessageRequest(tenant=tenant, message_id=message_id)
        connection = self._open_connection
        return (await connection.read(connection.history.GetMessage, request)).message

    async def list_receipts(
        self, address: Address, *, after: str = "", limit: int = 0
    ) -> histories.ListReceiptsResponse:
        """Reads up to which positions a conversation was delivered to, and read by, each user.

        Args:
            address: The conversation.
            after: Start after this user.
            limit: Size of the page; 0 leaves it to the router.

        Returns:
            Receipts in the order of users, and whether there are more.

        Raises:
            Refused: For instance INVALID_ARGUMENT if the address is no conversation.
            Unreachable: See the class.
        """
        request = histories.ListReceiptsRequest(address=address, after=after, page_size=limit)
        connection = self._open_connection
        return await connection.read(connection.history.ListReceipts, request)

    # Dead letters.

    async def list_dead_letters(
        self, tenant: str, agent: str, *, after: int = 0, limit: int = 0
    ) -> agents.ListDeadLettersResponse:
        """Reads a page of an agent's dead letters, oldest first.

        Args:
            tenant: The agent's tenant.
            agent: The agent.
            after: Start after this delivery id.
            limit: Size of the page; 0 leaves it to the router.

        Returns:
            The dead letters, and whether there are more.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        request = agents.ListDeadLettersRequest(tenant=tenant, agent=agent, after=after, page_size=limit)
        connection = self._open_connection
        return await connection.read(connection.agents.ListDeadLetters, request)

    # Presence.

    async def connections(
        self, address: Address, *, page_size: int = 0
    ) -> AsyncGenerator[presence.Connection, None]:
        """Iterates over the connections that an address matches, in the order of their ids.

        Args:
            address: The address.
            page_size: Connections per call to the router; 0 leaves it to the router.

        Returns:
            An asynchronous iterator. It calls the router for a page when it needs one, so connections
            that open or close meanwhile may be missed or appear.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        request = presence.ListConnectionsRequest(address=address, page_size=page_size)
        connection = self._open_connection
        while True:
            page = await connection.read(connection.presence.ListConnections, request)
            for each in page.connections:
                yield each
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def count_connections(self, address: Address) -> presence.CountConnectionsResponse:
        """Counts the connections that an address matches.

        Args:
            address: The address.

        Returns:
            The number of connections, and of the users behind them.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        request = presence.CountConnectionsRequest(address=address)
        connection = self._open_connection
        return await connection.read(connection.presence.CountConnections, request)

    async def topics(
        self, address: Address, *, page_size: int = 0
    ) -> AsyncGenerator[presence.TopicListeners, None]:
        """Iterates over the topics within an address that have subscribers, in order.

        Args:
            address: A tenant, agent, platform or conversation.
            page_size: Topics per call to the router; 0 leaves it to the router.

        Returns:
            An asynchronous iterator over topics and the number of connections subscribed to each.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        request = presence.ListTopicsRequest(address=address, page_size=page_size)
        connection = self._open_connection
        while True:
            page = await connection.read(connection.presence.ListTopics, request)
            for each in page.topics:
                yield each
            if not page.more:
                return
            request.after.CopyFrom(page.topics[-1].address)

    async def get_stats(self, tenant: str) -> presence.GetStatsResponse:
        """Reads a tenant's current figures and its counters since the router started.

        Args:
            tenant: The tenant.

        Returns:
            The figures.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            Unreachable: See the class.
        """
        request = presence.GetStatsRequest(tenant=tenant)
        connection = self._open_connection
        return await connection.read(connection.presence.GetStats, request)

    async def watch_connections(
        self, address: Address
    ) -> AsyncGenerator[list[presence.ConnectionChange], None]:
        """Reports the current connections, then each one that opens or closes.

            async with contextlib.aclosing(backend.watch_connections(room)) as changes:
                async for batch in changes:
                    ...

        Args:
            address: The address that connections must match.

        Returns:
            An asynchronous iterator over batches of changes. The first batch holds the connections there
            are. The iterator ends when it is closed.

        Raises:
            Refused: The router rejected the stream, or ended it for a reason of the catalogue.
            Unreachable: The stream broke, or the backend was closed. Watch again, and start from its first
                batch.
        """
        connection = self._open_connection
        request = presence.WatchConnectionsRequest(address=address)
        batches = connection.read_stream(connection.presence.WatchConnections, request)
        async with aclosing(batches):
            async for batch in batches:
                yield list(batch.changes)
