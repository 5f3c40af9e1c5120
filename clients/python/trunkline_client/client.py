"""A client of an edge that receives and sends, across reconnects."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from trunkline.v1.address_pb2 import Conversation, Position
from trunkline.v1.frame_pb2 import ReadFrame

from trunkline_client import builders
from trunkline_client.events import Ack, CancelResult
from trunkline_client.read_only_client import ReadOnlyClient
from trunkline_client.reply_source import SentMessageSource
from trunkline_client.reply_stream import ReplyStream


class Client(ReadOnlyClient):
    """A connection to one conversation that outlives its sockets.

        async with Client("ws://127.0.0.1:8080", tenant="demo", agent="echo", platform="web",
                          conversation="person:alice", user="alice") as client:
            await client.send("hello")
            async for message in client:
                ...

    The arguments, and how it connects, reconnects and iterates, are those of `ReadOnlyClient`. A request
    is sent again after each reconnect, with the same id, until it is answered. It is also sent again,
    after a pause, if it exceeded the rate limit; requests begun meanwhile follow it. It raises:

    - Refused: the edge rejected it; nothing of it was done.
    - Unreachable: it was never sent within `timeout_s`; retrying is safe.
    - OutcomeUnknown: it was sent and may have been carried out, but no answer arrived within `timeout_s`
      (TimedOut), or the client ended first. Retry with the same `id`.
    - Closed, or another error that ended the client: the client had ended before it was sent.

    A request that is cancelled may have been carried out too.
    """

    async def send(
        self,
        content: builders.Content,
        *,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        without_worker: builders.WithoutWorkerName = "",
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Sends a message; returns once it is on disk.

        Args:
            content: Text, a part, or several parts.
            reply_to: Id of the message that this one answers.
            attributes: Strings of the application's own.
            conversation: The conversation; None for the client's own.
            without_worker: Delivery to the agent while no worker takes the message: `expire`, `keep` or
                `skip`; empty for the agent's setting.
            id: Idempotency key: sending again with the same id creates one message. Empty makes a new one.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The message's id and position.

        Raises:
            Refused: The edge rejected it, for instance FRAME_TOO_LARGE.
            TransportError: Unreachable, or OutcomeUnknown; see the class.
            Closed: The client has ended.
            RuntimeError: The client is not open.
        """
        return await self._runtime.requests.send(
            content,
            reply_to=reply_to,
            attributes=attributes,
            conversation=conversation,
            without_worker=without_worker,
            message_id=id or uuid.uuid4().hex,
            timeout_s=timeout_s,
        )

    def ask(
        self,
        content: builders.Content,
        *,
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> ReplyStream:
        """Makes a stream of the agent's first reply to a message, streamed or whole.

            async with client.ask("Tell me a story") as reply:
                print(text_of(await reply.wait_until_ended()))

        Entering the block sends the message, with the errors of `send`. How long to wait for the reply is
        up to the caller (`asyncio.timeout`). Leaving the block before the reply has ended does not cancel
        the reply. All other messages are yielded by the client's own iteration.

        Args:
            content: Text, a part, or several parts.
            attributes: Strings of the application's own.
            conversation: The conversation; None for the client's own.
            id: Idempotency key of the message, as for `send`.
            timeout_s: Seconds to wait for the ack of the message.

        Returns:
            A `ReplyStream` to enter.

        Raises:
            RuntimeError: The client is not open.
        """
        runtime = self._runtime
        source = SentMessageSource(
            runtime.tracker,
            runtime.requests,
            runtime.emit,
            content,
            attributes,
            conversation,
            id or uuid.uuid4().hex,
            timeout_s,
        )
        return runtime.stream(source)

    async def cancel(
        self,
        *,
        message_id: str = "",
        client_id: str = "",
        conversation: str | Conversation | None = None,
        timeout_s: float = 10.0,
    ) -> CancelResult:
        """Cancels a reply, or all replies to a message of this user; returns once that is on disk.

        Args:
            message_id: Id of the reply.
            client_id: The `id` with which the message was sent; its replies need not have begun.
            conversation: The conversation; None for the client's own.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The effect.

        Raises:
            ValueError: Not exactly one of `message_id` and `client_id` is given.
            Refused, TransportError, Closed, RuntimeError: As for `send`; cancelling again is safe.
        """
        if bool(message_id) == bool(client_id):
            raise ValueError("a cancel names a reply's message_id, or a message's client_id")
        return await self._runtime.requests.cancel(message_id, client_id, conversation, timeout_s)

    async def edit(
        self,
        message_id: str,
        content: builders.Content,
        *,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Replaces the parts of a message of this user; returns once that is on disk.

        Args:
            message_id: The message.
            content: Its new text or parts.
            id: Idempotency key, as for `send`.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The message's id, and the position of the change.

        Raises:
            Refused, TransportError, Closed, RuntimeError: As for `send`.
        """
        return await self._runtime.requests.edit(message_id, content, id or uuid.uuid4().hex, timeout_s)

    async def recall(
        self,
        message_id: str,
        *,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Recalls a message of this user: its parts are erased; returns once that is on disk.

        Args:
            message_id: The message.
            id: Idempotency key, as for `send`.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The message's id, and the position of the change; empty if it had been recalled before.

        Raises:
            Refused, TransportError, Closed, RuntimeError: As for `send`.
        """
        return await self._runtime.requests.recall(message_id, id or uuid.uuid4().hex, timeout_s)

    async def signal(
        self,
        name: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation: str | Conversation | None = None,
        ttl_s: float | None = None,
    ) -> None:
        """Sends a signal, an event that is not stored. A rejection is an ErrorFrame in `events`.

        Args:
            name: The signal's name, such as `typing`.
            data: JSON values of the application's own.
            conversation: The conversation; None for the client's own.
            ttl_s: Seconds that the signal lives, at most 300; sent again within them, it lives on. The others
                then get another SignalFrame with its `end`: when the seconds have passed, after `end_signal`,
                or when this connection is gone. None for a signal without an end.

        Raises:
            Unreachable: There is no connection at the moment; nothing is queued here either.
            QueueFull: The socket takes no more at the moment.
            Refused: The signal is larger than the edge accepts.
            Closed: The client has ended.
            RuntimeError: The client is not open.
            ValueError: `ttl_s` is out of range.
        """
        self._runtime.requests.signal(name, data, conversation, ttl_s)

    async def end_signal(self, name: str, *, conversation: str | Conversation | None = None) -> None:
        """Ends a signal of this user before its `ttl_s` has passed.

        Args:
            name: The signal's name.
            conversation: The conversation; None for the client's own.

        Raises:
            Unreachable, QueueFull, Closed, RuntimeError: As for `signal`.
        """
        self._runtime.requests.end_signal(name, conversation)

    async def mark_read(self, position: Position, *, conversation: str | Conversation | None = None) -> None:
        """Reports to the others how far this user has read; returns at once.

        The report is sent again after each reconnect until it is confirmed by a ReadFrame in `events`.

        Args:
            position: The position that is read.
            conversation: The conversation; None for the client's own.

        Raises:
            Closed: The client has ended.
            RuntimeError: The client is not open.
        """
        conversation = builders.optional_conversation(conversation)
        self._runtime.mark_read(ReadFrame(position=position, conversation=conversation))

    async def mark_delivered(
        self, position: Position, *, conversation: str | Conversation | None = None
    ) -> None:
        """Reports to the authors that everything up to a position was delivered to this user.

        Args:
            position: The position that is delivered.
            conversation: The conversation; None for the client's own.

        Raises:
            Unreachable, QueueFull, Closed, RuntimeError: As for `signal`.
        """
        self._runtime.requests.mark_delivered(position, conversation)
