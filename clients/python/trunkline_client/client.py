"""A client of an edge, over one WebSocket after another."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from trunkline.v1.address_pb2 import Conversation, Position, TopicPosition
from trunkline.v1.message_pb2 import Message

from trunkline_client import builders
from trunkline_client import events as effects
from trunkline_client.clock import Clock
from trunkline_client.edge_socket import ClientSettings, connect_url
from trunkline_client.errors import Closed
from trunkline_client.events import CancelResult, Effect, Event, MessagesLost
from trunkline_client.inbox import Inbox
from trunkline_client.inbox_reader import CallIterator, InboxReader
from trunkline_client.reconnecting_transport import ClientState, ReconnectingTransport
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.reply_tracker import Replies, TrackedReply
from trunkline_client.request_sender import RequestSender
from trunkline_client.saying import Saying
from trunkline_client.session import Session
from trunkline_client.token_refresher import TokenSource

#: How far back a reply is looked for when it may have come unseen.
_CATCH_UP_MESSAGES = 100


class Client(Saying):
    """A connection to one conversation that outlives its sockets.

        async with Client("ws://127.0.0.1:8080", tenant="demo", agent="echo", platform="web",
                          conversation="person:alice", user="alice") as client:
            await client.send("hello")
            async for message in client:
                ...

    Entering the context connects, and raises Unreachable, Refused or Closed where that fails for good.
    From then on the client reconnects by itself, resumes where it was, and sends again what was not
    answered: each message is yielded once and in order, or a `MessagesLost` event says that some may be
    missing. What is received waits for the application in a bounded queue; while that is full the
    client reads nothing, answers to its own requests included, so an application that sends must also
    read. Leaving the context closes the connection and ends iteration.

    `token` proves who the user is: a JSON Web Token, or a function that gives a fresh one. The latter is
    called for each attempt to connect, and in good time before the token expires; where it fails, or takes
    longer than `settings.attempt_timeout_s`, it is called again. A client with nothing but one token ends
    with it, by Closed or Refused with the reason TOKEN_EXPIRED.

    `resume` takes the `positions` of an earlier client. `on_lost` is called for each `MessagesLost` event
    when iteration comes to it. One task iterates; any may send.
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
        self._settings = settings or ClientSettings()
        self._address = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=builders.conversation(conversation)
        )
        self._query = {
            "tenant": tenant,
            "agent": agent,
            "platform": platform,
            "conversation": builders.conversation_name(self._address.conversation),
            "user": user,
            "rollup_ms": "" if self._settings.rollup_ms is None else str(self._settings.rollup_ms),
        }
        self._edge_url = url
        self._inbox = Inbox(self._settings.inbox_max_items, self._settings.inbox_max_bytes)
        resume = list(resume)
        self._session = Session(self._address, resume)
        for each in resume:
            self._inbox.mark(each.address, each.position)
        self._listening = InboxReader(self._inbox, on_lost)
        self._replies = Replies()
        clock = clock or Clock()
        self._clock = clock.clock
        self._carrier = ReconnectingTransport(
            self._url, token, self._session, self._settings, clock, self._perform, self._listening.room
        )
        self._requests = RequestSender(self._session, self._carrier, self._settings.max_unanswered)
        #: Connected for the first time, or ended.
        self._opened = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._end: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Client {self.state} {builders.address_name(self._address)}>"

    # ClientState.

    @property
    def state(self) -> ClientState:
        """`connecting`, `connected`, `waiting` before the next attempt, or `closed` for good."""
        return self._carrier.state

    @property
    def connection_id(self) -> str:
        """The present connection's id, or the last one's; empty before the first."""
        return self._session.connection_id

    @property
    def recovered(self) -> bool:
        """Whether the present connection was told all that was missed since the positions resumed from."""
        return self._session.recovered

    @property
    def positions(self) -> list[TopicPosition]:
        """Where to `resume` after a restart: everything up to here has been yielded to the application."""
        return self._inbox.positions

    # Life.

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects; returns once the edge has said `connected`.

        Tries for `settings.open_timeout_s`, then raises Unreachable. Raises Refused or Closed at once
        where trying again is of no use. After a failure or a cancel nothing is left running.
        """
        if self._running is not None:
            raise RuntimeError("a client is opened once; make another one")
        self._running = asyncio.create_task(self._carrier.run(), name=f"carry {self!r}")
        self._running.add_done_callback(self._on_end)
        try:
            await self._opened.wait()
        except BaseException:
            await self._stop()
            raise
        if self._end is not None:
            raise self._end

    async def close(self) -> None:
        """Disconnects; what waits for an answer fails with Closed. Idempotent.

        Waits `settings.close_timeout_s` for the edge to agree, and not at all while not connected.
        """
        if self._running is None or self._end is not None:
            return
        try:
            if self.state == "connected":
                self._carrier.leave()
                await asyncio.wait({self._running}, timeout=self._settings.close_timeout_s)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running})

    def _on_end(self, running: asyncio.Task[None]) -> None:
        error = None if running.cancelled() else running.exception()
        self._end = error or Closed(1000, "DISCONNECTED", "The client was closed")
        self._requests.end(self._end)
        self._listening.end(self._end)
        self._replies.end()
        self._opened.set()

    # Asking.

    def ask(
        self,
        content: builders.Content,
        *,
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> ReplyStream:
        """Says something and follows the agent's first reply to it, streamed or whole.

        Entering the block sends, with the errors of `send`; how long to wait for the reply is up to the
        caller (`asyncio.timeout`). Leaving it before the reply has ended does not cancel it. Whatever
        else is said waits for the client's own iteration as always.
        """
        following = TrackedReply()
        client_id = id or uuid.uuid4().hex

        async def begin() -> None:
            self._replies.asking(following)
            ack = await self.send(
                content,
                attributes=attributes,
                conversation=conversation,
                id=client_id,
                timeout_s=timeout_s,
            )
            self._tell(self._replies.asked(following, ack.message_id), 0)

        async def cancel() -> CancelResult:
            if following.whole is not None:
                return await self.cancel(message_id=following.whole.id, conversation=conversation)
            return await self.cancel(client_id=client_id, conversation=conversation)

        async def catch_up() -> None:
            self._replies.found((await self.read_history(conversation, limit=_CATCH_UP_MESSAGES)).messages)

        return self._following(following, begin, cancel, catch_up)

    def follow(self, message: Message) -> ReplyStream:
        """Follows an open message that iteration has yielded, from what that holds. See ReplyStream.

        Entering the block raises ValueError where another one follows that message.
        """
        following = TrackedReply()
        conversation = message.address.conversation if message.address.HasField("conversation") else None

        async def begin() -> None:
            self._replies.follow(following, message)

        async def cancel() -> CancelResult:
            return await self.cancel(message_id=message.id, conversation=conversation)

        async def catch_up() -> None:
            before = Position(epoch=message.position.epoch, seq=message.position.seq - 1)
            self._replies.found((await self.read_history(conversation, after=before, limit=1)).messages)

        return self._following(following, begin, cancel, catch_up)

    def _following(
        self,
        following: TrackedReply,
        begin: Callable[[], Awaitable[None]],
        cancel: Callable[[], Awaitable[CancelResult]],
        catch_up: Callable[[], Awaitable[None]],
    ) -> ReplyStream:
        return ReplyStream(
            following,
            begin,
            lambda: self._tell(self._replies.leave(following), 0),
            cancel,
            catch_up,
            lambda: self._end,
        )

    # Hearing.

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages, in order and each once; other events are passed over. See `events`.

        A message that is still open comes as soon as it was begun, with what it says until then;
        `follow` follows it.
        """
        return CallIterator(self._listening.take_message)

    def events(self) -> AsyncIterator[Event]:
        """Messages and what becomes of them, signals, receipts, refusals and losses, as received.

        An open message comes as a Message, then as Deltas, and as MessageChanged when it has ended; as a
        Snapshot where what was told of it is to be replaced. What a ReplyStream follows is left out.

        Ends after `close`; raises Closed, or what else ended the connection for good, once all that was
        received before has been yielded. A cancelled iteration loses nothing and may be begun again.
        """
        return CallIterator(self._listening.take)

    # What the carrier calls.

    def _url(self, resuming: bool) -> str:
        return connect_url(self._edge_url, self._query | {"resume": "frame" if resuming else ""})

    def _perform(self, wanted: list[Effect], size: int) -> None:
        for effect in wanted:
            match effect:
                case effects.Emit(event):
                    self._tell(self._replies.sort(event), size)
                case effects.SetPosition(address, position):
                    self._inbox.mark(address, position)
                case effects.CompleteRequest(request_id, answer):
                    self._requests.answered(request_id, answer)
                case effects.FailRequest(request_id, error):
                    self._requests.refused(request_id, error)
                case effects.ForgetTopic(address):
                    self._inbox.forget(address)
                    self._replies.forget(address)
                case _:
                    self._carrier.perform(effect)
        if self._session.connected:
            self._opened.set()

    def _tell(self, told: list[Event], size: int) -> None:
        for event in told:
            self._listening.put(event, size)
