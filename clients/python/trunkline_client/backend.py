"""A backend's calls to a router: all that `ReadOnlyBackend` has, and those that change something."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from trunkline.v1 import agent_service_pb2 as agents
from trunkline.v1 import broadcast_service_pb2 as broadcasts
from trunkline.v1 import history_service_pb2 as histories
from trunkline.v1 import presence_service_pb2 as presence
from trunkline.v1.address_pb2 import Address, Position
from trunkline.v1.message_pb2 import Author, MessageState

from trunkline_client import builders
from trunkline_client.interruptible_block import OnCancel
from trunkline_client.open_message import OpenMessage
from trunkline_client.publisher import Publisher
from trunkline_client.read_only_backend import ReadOnlyBackend
from trunkline_client.unary_producer import UnaryProducer


class Backend(ReadOnlyBackend):
    """A backend's connection to a router, over one gRPC channel.

        async with Backend("127.0.0.1:50051") as backend:
            await backend.broadcast(address(tenant="demo", agent="echo", platform="web"), "hello")

    The arguments are those of `ReadOnlyBackend`. Calls do not retry. A call that changes something raises:

    - Refused: the router rejected the call; nothing of it was done.
    - Unreachable: the call was not sent; retrying is safe.
    - OutcomeUnknown: the call was sent and may have been carried out; TimedOut if no answer arrived within
      `timeout_s`. Repeat `broadcast` with the same `idempotency_key`; without one it may create a second
      message. The other calls bring about a state, so repeating them does nothing twice.
    """

    # Messages.

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
        without_worker: builders.WithoutWorkerName = "",
    ) -> broadcasts.BroadcastResponse:
        """Sends one message to an address; returns once it is on disk.

        Args:
            address: The recipients: a tenant, agent, platform, conversation, user or connection.
            content: Text, a part, or several parts.
            author: The author; without a role it is SYSTEM.
            reply_to: Id of the message that this one answers.
            attributes: Strings of the application's own.
            idempotency_key: Makes repeating the call safe: a repeat gets the same answer.
            ephemeral: Do not store the message; only current connections get it.
            require_connection: Reject the message if nobody is connected, instead of storing it.
            without_worker: Delivery to the agent while no worker takes a user's message: `expire`, `keep` or
                `skip`; empty for the agent's setting.

        Returns:
            The message's id and position, and the number of connections that matched.

        Raises:
            Refused: For instance NO_ACTIVE_CONNECTION with `require_connection`, or UNKNOWN_TENANT.
            TransportError: Unreachable or OutcomeUnknown; see the class.
        """
        request = builders.broadcast_request(
            address,
            content,
            author=author,
            reply_to=reply_to,
            attributes=attributes,
            idempotency_key=idempotency_key,
            ephemeral=ephemeral,
            require_connection=require_connection,
            without_worker=without_worker,
        )
        connection = self._open_connection
        return await connection.call_mutating(connection.broadcast.Broadcast, request)

    def publisher(self, *, max_unanswered: int = 10_000) -> Publisher:
        """Makes a pipeline of broadcasts, for volume: `async with backend.publisher() as publisher:`.

        Args:
            max_unanswered: Bound of the requests that wait for their answers.

        Returns:
            A `Publisher` to enter.

        Raises:
            RuntimeError: The backend is not open.
        """
        return Publisher(self._open_connection, self._clock, max_unanswered=max_unanswered)

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
        """Makes a message that is written piece by piece: `async with backend.open_message(…) as out:`.

        Args:
            address: The topic of the message.
            key: Opening again with the same key within a day resumes the same message and fences its
                previous producer. Empty makes a new message.
            author: The author; without a role it is SYSTEM.
            reply_to: Id of the message that this one answers.
            attributes: Strings of the application's own.
            producer: Name of this producer in logs.
            on_cancel: Called when readers cancel, instead of interrupting the block.

        Returns:
            An `OpenMessage`; entering it opens the message, with the errors that it documents.

        Raises:
            RuntimeError: The backend is not open.
        """
        request = broadcasts.OpenMessageRequest(
            address=address,
            key=key or uuid.uuid4().hex,
            producer=producer,
            author=author,
            reply_to=reply_to,
            attributes=dict(attributes or {}),
        )
        unary = UnaryProducer(self._open_connection, request, self._clock, self._timeout_s, on_cancel)
        return OpenMessage(unary)

    async def cancel(self, tenant: str, message_id: str) -> MessageState.ValueType:
        """Cancels an open message for its readers.

        Args:
            tenant: The message's tenant.
            message_id: The open message.

        Returns:
            CANCELLED, or the state in which the message had already ended.

        Raises:
            Refused: For instance MESSAGE_NOT_FOUND.
            TransportError: See the class.
        """
        request = broadcasts.CancelMessageRequest(tenant=tenant, message_id=message_id)
        connection = self._open_connection
        return (await connection.call_mutating(connection.broadcast.CancelMessage, request)).state

    async def edit(self, tenant: str, message_id: str, content: builders.Content) -> Position:
        """Replaces the parts of a message that has ended.

        Args:
            tenant: The message's tenant.
            message_id: The message.
            content: Its new text or parts.

        Returns:
            The position of the change in the log.

        Raises:
            Refused: For instance MESSAGE_NOT_FOUND.
            TransportError: See the class.
        """
        parts = builders.parts(content)
        request = histories.EditMessageRequest(tenant=tenant, message_id=message_id, parts=parts)
        connection = self._open_connection
        return (await connection.call_mutating(connection.history.EditMessage, request)).position

    async def recall(self, tenant: str, message_id: str) -> Position | None:
        """Recalls a message: its parts are erased.

        Args:
            tenant: The message's tenant.
            message_id: The message.

        Returns:
            The position of the change in the log; None if the message had been recalled before.

        Raises:
            Refused: For instance MESSAGE_NOT_FOUND.
            TransportError: See the class.
        """
        request = histories.RecallMessageRequest(tenant=tenant, message_id=message_id)
        connection = self._open_connection
        answer = await connection.call_mutating(connection.history.RecallMessage, request)
        return answer.position if answer.HasField("position") else None

    # Topics, connections, dead letters.

    async def erase_history(self, address: Address) -> int:
        """Erases a topic's log, which starts over with a new epoch.

        Args:
            address: The topic.

        Returns:
            The number of messages that were erased.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            TransportError: See the class.
        """
        request = histories.ResetConversationRequest(address=address)
        connection = self._open_connection
        return (await connection.call_mutating(connection.history.ResetConversation, request)).erased

    async def close_connections(self, address: Address, *, reason: str = "", reconnect: bool = False) -> int:
        """Closes the connections that an address matches.

        Args:
            address: The address.
            reason: Sent to the clients, for people.
            reconnect: Ask the clients to reconnect instead of staying away.

        Returns:
            The number of connections that are closed.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            TransportError: See the class.
        """
        request = presence.CloseConnectionsRequest(address=address, reason=reason, reconnect=reconnect)
        connection = self._open_connection
        return (await connection.call_mutating(connection.presence.CloseConnections, request)).connections

    async def replay_dead_letters(self, tenant: str, agent: str, delivery_ids: Iterable[int]) -> int:
        """Delivers dead letters again, as new deliveries.

        Args:
            tenant: The agent's tenant.
            agent: The agent.
            delivery_ids: Ids of the dead letters.

        Returns:
            The number of dead letters that are delivered again.

        Raises:
            Refused: For instance UNKNOWN_TENANT.
            TransportError: See the class.
        """
        request = agents.ReplayDeadLettersRequest(tenant=tenant, agent=agent, delivery_ids=delivery_ids)
        connection = self._open_connection
        return (await connection.call_mutating(connection.agents.ReplayDeadLetters, request)).replayed
