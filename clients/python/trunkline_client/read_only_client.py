"""A client of an edge that receives, across reconnects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from trunkline.v1.address_pb2 import Conversation, Position, TopicPosition
from trunkline.v1.message_pb2 import Message

from trunkline_client import builders
from trunkline_client.client_runtime import ClientRuntime
from trunkline_client.clock import Clock
from trunkline_client.events import Event, GroupJoined, HistoryPage, MessagesLost
from trunkline_client.inbox_reader import CallIterator
from trunkline_client.reconnecting_transport import ClientState
from trunkline_client.reply_source import MessageSource
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.settings import ClientSettings
from trunkline_client.token_refresher import TokenSource


class ReadOnlyClient:
    """A connection to one conversation that outlives its sockets, for receiving.

        async with ReadOnlyClient("ws://127.0.0.1:8080", tenant="demo", agent="echo", platform="web",
                                  conversation="group:team", user="screen") as client:
            async for message in client:
                print(text_of(message))

    `Client` adds what sends. Entering the block connects, with the errors of `open`. From then on the
    client reconnects by itself and resumes where it was: each message is yielded once and in order, or a
    `MessagesLost` event reports that some may be missing. Received events wait for the application in a
    bounded queue. While that is full, the client reads nothing, not even answers to its own requests; so
    an application must read while it waits for an answer. Leaving the block closes the connection and
    ends iteration.

    Used outside the block, methods raise RuntimeError. After the client has ended they raise the error that
    ended it: Closed, Refused or Unreachable. One task iterates; any may call.

    Args:
        url: The edge, `ws://host:port` or `wss://…`.
        tenant: The tenant.
        agent: The agent.
        platform: The platform.
        conversation: `person:<id>`, `group:<id>`, or a Conversation.
        user: The user, if the token does not name one.
        token: A JSON Web Token, or a function that returns a fresh one. The function is called for each
            attempt to connect and in time before the token expires, and again if it fails or takes longer
            than `settings.attempt_timeout_s`. A client with a fixed token ends when that expires, by Closed
            or Refused with the reason TOKEN_EXPIRED.
        resume: The `positions` of an earlier client, to continue from.
        on_lost: Called when iteration reaches a `MessagesLost` event.
        settings: Timeouts and bounds.
        clock: Time and randomness, for tests.

    Raises:
        ValueError: The URL or the conversation is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        agent: str,
        platform: str,
        conversation: str | Conversation,
        user: str = "",
        token: TokenSource = "",
        resume: Iterable[TopicPosition] = (),
        on_lost: Callable[[MessagesLost], None] | None = None,
        settings: ClientSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).hostname:
            raise ValueError(f"an edge's URL begins with ws:// or wss:// and names a host, not {url!r}")
        settings = settings or ClientSettings()
        address = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=builders.conversation(conversation)
        )
        query = {
            "tenant": tenant,
            "agent": agent,
            "platform": platform,
            "conversation": builders.conversation_name(address.conversation),
            "user": user,
            "rollup_ms": "" if settings.rollup_ms is None else str(settings.rollup_ms),
        }
        self._runtime = ClientRuntime(url, query, address, token, resume, on_lost, settings, clock or Clock())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state} {builders.address_name(self._runtime.address)}>"

    @property
    def state(self) -> ClientState:
        """`new`, `connecting`, `connected`, `waiting` before the next attempt, or `closed` for good."""
        return self._runtime.transport.state

    @property
    def connection_id(self) -> str:
        """Id of the current connection, or of the last one; empty before the first."""
        return self._runtime.session.connection_id

    @property
    def recovered(self) -> bool:
        """Whether the current connection received everything missed since the positions it resumed from."""
        return self._runtime.session.recovered

    @property
    def positions(self) -> list[TopicPosition]:
        """Positions to `resume` from after a restart: the application has taken everything up to them."""
        return self._runtime.inbox.positions

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects; returns once the edge has accepted the client. `async with` calls it.

        After a failure or a cancel nothing is left running.

        Raises:
            Unreachable: No connection was made within `settings.open_timeout_s`.
            Refused, Closed: The edge rejected the client for good.
            RuntimeError: The client was opened before.
        """
        await self._runtime.open()

    async def close(self) -> None:
        """Disconnects; pending requests fail. Idempotent. Leaving the `async with` block calls it.

        Waits up to `settings.close_timeout_s` for the edge to confirm, and not at all while not connected.

        Raises:
            Nothing.
        """
        await self._runtime.close()

    def __aiter__(self) -> AsyncIterator[Message]:
        """Iterates over messages, in order and each once; skips other events. See `events`.

        An open message is yielded as soon as it begins, with the text it has by then; `follow` follows it.
        """
        self._runtime.require_open()
        return CallIterator(self._runtime.reader.take_message)

    def events(self) -> AsyncIterator[Event]:
        """Iterates over messages and their changes, signals, receipts, rejections and losses, as received.

        An open message is a Message first, then Deltas, and a MessageChanged when it ends; a Snapshot
        replaces everything received of it before. Messages that a ReplyStream follows are left out.

        Returns:
            An asynchronous iterator. It ends after `close`. A cancelled iteration loses nothing and may be
            started again.

        Raises:
            TrunklineError: The error that ended the client, once all events received before are taken.
            RuntimeError: The client is not open.
        """
        self._runtime.require_open()
        return CallIterator(self._runtime.reader.take)

    def follow(self, message: Message) -> ReplyStream:
        """Makes a stream of the additions to an open message, from the text that it holds.

        Args:
            message: An open message that iteration has yielded.

        Returns:
            A `ReplyStream` to enter. Entering raises ValueError if another one follows the message.

        Raises:
            RuntimeError: The client is not open.
        """
        runtime = self._runtime
        return runtime.stream(MessageSource(runtime.tracker, runtime.requests, runtime.emit, message))

    async def subscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> GroupJoined:
        """Joins a group, and joins it again after each reconnect.

        Args:
            group: Id of the group, `group:<id>`, or a Conversation. If `resume` has a position for it,
                its messages continue from there.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The position after which its messages follow.

        Raises:
            ValueError: The conversation is not a group.
            Refused: The edge rejected it, for instance CONVERSATION_FORBIDDEN.
            TransportError: No answer arrived; joining again is safe.
        """
        return await self._runtime.requests.subscribe(group, timeout_s)

    async def unsubscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> None:
        """Leaves a group and forgets its position.

        Args:
            group: Id of the group, `group:<id>`, or a Conversation.
            timeout_s: Seconds to wait for the answer.

        Raises:
            ValueError, Refused, TransportError: As for `subscribe`.
        """
        await self._runtime.requests.unsubscribe(group, timeout_s)

    async def read_history(
        self,
        conversation: str | Conversation | None = None,
        *,
        before: Position | None = None,
        after: Position | None = None,
        limit: int = 0,
        timeout_s: float = 10.0,
    ) -> HistoryPage:
        """Reads a page of a conversation's log; the newest messages without a position.

        Args:
            conversation: The conversation; None for the client's own.
            before: End before this position.
            after: Start after this position.
            limit: Size of the page; 0 leaves it to the edge.
            timeout_s: Seconds to wait for the answer.

        Returns:
            The messages, oldest first.

        Raises:
            ValueError: Both `before` and `after` are given.
            Refused: The edge rejected it, for instance CONVERSATION_FORBIDDEN.
            Unreachable: No answer arrived in time. Reading changes nothing, so retrying is safe.
        """
        return await self._runtime.requests.read_history(
            conversation, before=before, after=after, limit=limit, timeout_s=timeout_s
        )

    async def ping(self, *, timeout_s: float = 10.0) -> float:
        """Measures the round trip to the edge; a reconnect meanwhile counts.

        Args:
            timeout_s: Seconds to wait for the answer.

        Returns:
            Seconds until the edge answered.

        Raises:
            Refused, Unreachable: As for `read_history`.
        """
        clock = self._runtime.clock
        started_at = clock.monotonic()
        await self._runtime.requests.ping(timeout_s)
        return clock.monotonic() - started_at
