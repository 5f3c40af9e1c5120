"""How the application waits for what is received, and the socket's reader for the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from trunkline.v1.message_pb2 import Message

from trunkline_client.errors import Closed
from trunkline_client.events import Event, MessagesLost
from trunkline_client.inbox import Inbox

E = TypeVar("E")


class InboxReader:
    """An inbox with two who wait at it: one who takes events, and one who puts them."""

    def __init__(self, inbox: Inbox, on_lost: Callable[[MessagesLost], None] | None) -> None:
        self.inbox = inbox
        self._on_lost = on_lost
        self._end: BaseException | None = None
        #: Set when there is something to take; only the taker clears it.
        self._stirred = asyncio.Event()
        #: Set when something was taken; only the putter clears it.
        self._taken = asyncio.Event()

    def put(self, event: Event, size: int) -> None:
        """Queues an event for the taker."""
        self.inbox.put(event, size)
        self._stirred.set()

    def room(self) -> Awaitable[None] | None:
        """None while more may be put, or else what to wait for before."""
        return self._until_room() if self.inbox.full else None

    async def _until_room(self) -> None:
        while self.inbox.full:
            self._taken.clear()
            await self._taken.wait()

    def end(self, error: BaseException) -> None:
        """Nothing more will be put: what is there can be taken, then `take` raises."""
        self._end = error
        self._stirred.set()

    async def take(self) -> Event:
        """The next event. A cancel loses none.

        After `end` raises its error, or StopAsyncIteration where that was an orderly close.
        """
        while not self.inbox:
            if isinstance(self._end, Closed) and self._end.code == 1000:
                raise StopAsyncIteration
            if self._end is not None:
                raise self._end
            await self._stirred.wait()
            self._stirred.clear()
        event = self.inbox.take()
        self._taken.set()
        if isinstance(event, MessagesLost) and self._on_lost is not None:
            self._on_lost(event)
        return event

    async def take_message(self) -> Message:
        """The next message; other events before it are passed over. Raises like `take`."""
        while True:
            event = await self.take()
            if isinstance(event, Message):
                return event


class CallIterator(AsyncIterator[E], Generic[E]):
    """Iteration by a coroutine that raises StopAsyncIteration; unlike a generator it may be left anywhere."""

    def __init__(self, take: Callable[[], Awaitable[E]]) -> None:
        self._take = take

    async def __anext__(self) -> E:
        return await self._take()
