"""The parts of a client, wired together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from trunkline.v1.address_pb2 import Address, TopicPosition
from trunkline.v1.frame_pb2 import ReadFrame

from trunkline_client import effects
from trunkline_client.builders import address_name
from trunkline_client.client_requests import ClientRequests
from trunkline_client.clock import Clock
from trunkline_client.edge_socket import connect_url
from trunkline_client.effects import Effect
from trunkline_client.errors import Closed
from trunkline_client.events import Event, MessagesLost
from trunkline_client.inbox import Inbox
from trunkline_client.inbox_reader import InboxReader
from trunkline_client.reconnecting_transport import ReconnectingTransport
from trunkline_client.reply_source import ReplySource
from trunkline_client.reply_stream import ReplyStream
from trunkline_client.reply_tracker import ReplyTracker
from trunkline_client.request_sender import RequestSender
from trunkline_client.session import Session
from trunkline_client.settings import ClientSettings
from trunkline_client.token_refresher import TokenSource


class ClientRuntime:
    """Runs a client's transport, and carries out the effects of its session."""

    def __init__(
        self,
        edge: str,
        query: Mapping[str, str],
        address: Address,
        token: TokenSource,
        resume: Iterable[TopicPosition],
        on_lost: Callable[[MessagesLost], None] | None,
        settings: ClientSettings,
        clock: Clock,
    ) -> None:
        self.address = address
        self.settings = settings
        self.clock = clock
        resume = list(resume)
        self.session = Session(address, resume)
        self.inbox = Inbox(settings.inbox_max_items, settings.inbox_max_bytes)
        for each in resume:
            self.inbox.set_position(each.address, each.position)
        self.reader = InboxReader(self.inbox, on_lost)
        self.tracker = ReplyTracker()
        self.transport = ReconnectingTransport(
            self._url, token, self.session, settings, clock, self._perform, self.reader.wait_for_room
        )
        self._sender = RequestSender(edge, self.session, self.transport, settings.max_unanswered)
        self._requests = ClientRequests(self._sender)
        #: The error with which the client ended; None before.
        self.end: BaseException | None = None
        self._edge = edge
        self._query = query
        #: Set once the client is connected for the first time, or has ended.
        self._opened = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ClientRuntime {self.transport.state} {address_name(self.address)}>"

    @property
    def requests(self) -> ClientRequests:
        """The requests. Raises RuntimeError before the client is opened."""
        self.require_open()
        return self._requests

    def require_open(self) -> None:
        """Raises RuntimeError before the client is opened."""
        if self._running is None:
            raise RuntimeError("The client is not open: write `async with Client(…) as client:`")

    async def open(self) -> None:
        """Connects; returns once the edge has sent `connected`. After a failure nothing is left running."""
        if self._running is not None:
            raise RuntimeError("A client is opened once: make another one")
        self._running = asyncio.create_task(self.transport.run(), name=f"run {self!r}")
        self._running.add_done_callback(self._on_end)
        try:
            await self._opened.wait()
        except BaseException:
            await self._stop()
            raise
        if self.end is not None:
            raise self.end

    async def close(self) -> None:
        """Disconnects; waits `close_timeout_s` for the edge to confirm if connected. Idempotent."""
        if self._running is None or self.end is not None:
            return
        try:
            if self.transport.state == "connected":
                self.transport.leave()
                await asyncio.wait({self._running}, timeout=self.settings.close_timeout_s)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait({self._running})

    def _on_end(self, running: asyncio.Task[None]) -> None:
        error = None if running.cancelled() else running.exception()
        self.end = error or Closed(1000, "DISCONNECTED", "The client was closed")
        self._sender.end(self.end)
        self.reader.end(self.end)
        self.tracker.end()
        self._opened.set()

    def mark_read(self, frame: ReadFrame) -> None:
        """Reports a read position. Raises the error that ended the client."""
        self.require_open()
        if self.end is not None:
            raise self.end
        for each in self.session.mark_read(frame):
            self.transport.send(each)

    def stream(self, source: ReplySource) -> ReplyStream:
        """Makes the stream of a source's reply."""
        return ReplyStream(source, lambda: self.end)

    def emit(self, events: list[Event], size: int = 0) -> None:
        """Queues events that together took `size` bytes on the wire."""
        for event in events:
            self.reader.put(event, size)

    def _url(self, resuming: bool) -> str:
        return connect_url(self._edge, {**self._query, "resume": "frame" if resuming else ""})

    def _perform(self, wanted: list[Effect], size: int) -> None:
        for effect in wanted:
            match effect:
                case effects.Emit(event):
                    self.emit(self.tracker.track(event), size)
                case effects.SetPosition(address, position):
                    self.inbox.set_position(address, position)
                case effects.CompleteRequest(request_id, response):
                    self._sender.complete(request_id, response)
                case effects.FailRequest(request_id, error):
                    self._sender.fail(request_id, error)
                case effects.ForgetTopic(address):
                    self.inbox.forget(address)
                    self.tracker.forget(address)
                case _:
                    self.transport.perform(effect)
        if self.session.connected:
            self._opened.set()
