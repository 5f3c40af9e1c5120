"""A client of an edge, over one WebSocket after another."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from trunkline.v1 import frame_pb2 as frames
from trunkline.v1.address_pb2 import Conversation, Position, TopicPosition
from trunkline.v1.message_pb2 import Message

from trunkline_client import events as effects
from trunkline_client import wording
from trunkline_client.backoff import Timing
from trunkline_client.carrier import Carrier, State
from trunkline_client.connecting import ClientSettings, connect_url
from trunkline_client.errors import Closed
from trunkline_client.events import Ack, Effect, Event, HistoryPage, Joined, Lost
from trunkline_client.inbox import Inbox
from trunkline_client.listening import Iteration, Listening
from trunkline_client.requests import Requests
from trunkline_client.session import Session


class Client:
    """A connection to one conversation that outlives its sockets.

        async with Client("ws://127.0.0.1:8080", tenant="demo", agent="echo", platform="web",
                          conversation="person:alice", user="alice") as client:
            await client.send("hello")
            async for message in client:
                ...

    Entering the context connects, and raises Unreachable, Refused or Closed where that fails for good.
    From then on the client reconnects by itself, resumes where it was, and sends again what was not
    answered: each message is yielded once and in order, or a `Lost` event says that some may be
    missing. What is received waits for the application in a bounded queue; while that is full the
    client reads nothing, answers to its own requests included, so an application that sends must also
    read. Leaving the context closes the connection and ends iteration.

    `resume` takes the `positions` of an earlier client. `on_lost` is called for each `Lost` event when
    iteration comes to it. One task iterates; any may send.
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
        token: str = "",
        resume: Iterable[TopicPosition] = (),
        on_lost: Callable[[Lost], None] | None = None,
        settings: ClientSettings | None = None,
        timing: Timing | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).hostname:
            raise ValueError(f"an edge's URL begins with ws:// or wss:// and names a host, not {url!r}")
        self._settings = settings or ClientSettings()
        self._address = wording.address(
            tenant=tenant, agent=agent, platform=platform, conversation=wording.conversation(conversation)
        )
        self._query = {
            "tenant": tenant,
            "agent": agent,
            "platform": platform,
            "conversation": wording.conversation_name(self._address.conversation),
            "user": user,
            "token": token,
        }
        self._edge_url = url
        self._inbox = Inbox(self._settings.inbox_max_items, self._settings.inbox_max_bytes)
        resume = list(resume)
        self._session = Session(self._address, resume)
        for each in resume:
            self._inbox.mark(each.address, each.position)
        self._listening = Listening(self._inbox, on_lost)
        timing = timing or Timing()
        self._clock = timing.clock
        self._carrier = Carrier(
            self._url, self._session, self._settings, timing, self._perform, self._listening.room
        )
        self._requests = Requests(self._session, self._carrier, self._settings.max_unanswered)
        #: Connected for the first time, or ended.
        self._opened = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._end: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Client {self.state} {wording.address_name(self._address)}>"

    # State.

    @property
    def state(self) -> State:
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
        self._opened.set()

    # Saying.

    async def send(
        self,
        content: wording.Content,
        *,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Says something, to the conversation connected to or to a group joined; returns once it is on disk.

        Survives reconnects: until the answer is there the message is sent again with the same id. Raises
        Refused where the edge refuses it, TimedOut without an answer in time and Closed when the
        connection ends for good; after TimedOut or a cancel it may still be taken, and sending again
        with the same `id` is safe.
        """
        message = frames.MessageFrame(
            id=id or uuid.uuid4().hex,
            parts=wording.parts(content),
            reply_to=reply_to,
            attributes=dict(attributes or {}),
            conversation=None if conversation is None else wording.conversation(conversation),
        )
        request = frames.ClientFrame(message=message)
        ack = await self._requests.ask(request, frames.AckFrame, timeout_s)
        return Ack(ack.message_id, ack.position, ack.address)

    async def subscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> Joined:
        """Joins a group, and joins it again after each reconnect. Errors are as for `send`.

        Goes on from the group's position among those passed as `resume`, if there is one.
        """
        frame = frames.SubscribeFrame(id=uuid.uuid4().hex, conversation=wording.group(group))
        request = frames.ClientFrame(subscribe=frame)
        joined = await self._requests.ask(request, frames.SubscribedFrame, timeout_s)
        return Joined(joined.address, joined.position, joined.recovered)

    async def unsubscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> None:
        """Leaves a group and forgets its position. Errors are as for `send`."""
        frame = frames.UnsubscribeFrame(id=uuid.uuid4().hex, conversation=wording.group(group))
        request = frames.ClientFrame(unsubscribe=frame)
        await self._requests.ask(request, frames.UnsubscribedFrame, timeout_s)

    async def history(
        self,
        conversation: str | Conversation | None = None,
        *,
        before: Position | None = None,
        after: Position | None = None,
        limit: int = 0,
        timeout_s: float = 10.0,
    ) -> HistoryPage:
        """Reads a page of a conversation's log; the newest messages where no position is given.

        Raises ValueError for both positions at once; other errors are as for `send`.
        """
        if before is not None and after is not None:
            raise ValueError("a page lies before a position or after one, not both")
        frame = frames.HistoryFrame(
            id=uuid.uuid4().hex,
            conversation=None if conversation is None else wording.conversation(conversation),
            before=before,
            after=after,
            limit=limit,
        )
        request = frames.ClientFrame(history=frame)
        page = await self._requests.ask(request, frames.HistoryPageFrame, timeout_s)
        return HistoryPage(list(page.messages), page.more)

    async def ping(self, *, timeout_s: float = 10.0) -> float:
        """Seconds until the edge answered; a reconnect on the way counts. Errors are as for `send`."""
        frame = frames.PingFrame(id=uuid.uuid4().hex)
        asked_at = self._clock()
        request = frames.ClientFrame(ping=frame)
        await self._requests.ask(request, frames.PongFrame, timeout_s)
        return self._clock() - asked_at

    async def signal(
        self,
        name: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation: str | Conversation | None = None,
    ) -> None:
        """Tells the others something that is not kept. A refusal comes as an ErrorFrame in `events`.

        Raises Disconnected while not connected, as nothing is kept here either, and Overfull where the
        socket takes no more.
        """
        frame = frames.SignalFrame(name=name)
        frame.data.update(dict(data or {}))
        if conversation is not None:
            frame.conversation.CopyFrom(wording.conversation(conversation))
        self._requests.say(frames.ClientFrame(signal=frame))

    async def read(self, position: Position, *, conversation: str | Conversation | None = None) -> None:
        """Tells the others how far this user has read. Errors are as for `signal`."""
        frame = frames.ReadFrame(position=position)
        if conversation is not None:
            frame.conversation.CopyFrom(wording.conversation(conversation))
        self._requests.say(frames.ClientFrame(read=frame))

    # Hearing.

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages, in order and each once; other events are passed over. See `events`."""
        return Iteration(self._listening.take_message)

    def events(self) -> AsyncIterator[Event]:
        """Messages, signals, reads, refusals and losses in the order received.

        Ends after `close`; raises Closed, or what else ended the connection for good, once all that was
        received before has been yielded. A cancelled iteration loses nothing and may be begun again.
        """
        return Iteration(self._listening.take)

    # What the carrier calls.

    def _url(self, resuming: bool) -> str:
        return connect_url(self._edge_url, self._query | {"resume": "frame" if resuming else ""})

    def _perform(self, wanted: list[Effect], size: int) -> None:
        for effect in wanted:
            match effect:
                case effects.Tell(event):
                    self._listening.put(event, size)
                case effects.Mark(address, position):
                    self._inbox.mark(address, position)
                case effects.Answer(request_id, answer):
                    self._requests.answered(request_id, answer)
                case effects.Refuse(request_id, error):
                    self._requests.refused(request_id, error)
                case effects.Send(frame):
                    self._carrier.send(frame)
                case effects.Forget(address):
                    self._inbox.forget(address)
                case effects.Drop(why):
                    self._carrier.drop(why)
        if self._session.connected:
            self._opened.set()
