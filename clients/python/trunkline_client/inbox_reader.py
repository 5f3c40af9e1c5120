"""The application's iteration over a client's inbox."""

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
    """An inbox whose consumer waits for events, and whose producer waits for room."""

    def __init__(self, inbox: Inbox, on_lost: Callable[[MessagesLost], None] | None) -> None:
        self._inbox = inbox
        self._on_lost = on_lost
        self._end: BaseException | None = None
        #: Set when there is something to take; only the consumer clears it.
        self._has_events = asyncio.Event()
        #: Set when something was taken; only the producer clears it.
        self._has_room = asyncio.Event()

    def put(self, event: Event, size: int) -> None:
        """Queues an event."""
        self._inbox.put(event, size)
        self._has_events.set()

    def wait_for_room(self) -> Awaitable[None] | None:
        """Returns None while there is room, or else an awaitable that completes when there is."""
        return self._wait_for_room() if self._inbox.is_full else None

    async def _wait_for_room(self) -> None:
        while self._inbox.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    def end(self, error: BaseException) -> None:
        """Marks the end: queued events can still be taken, then `take` raises."""
        self._end = error
        self._has_events.set()

    async def take(self) -> Event:
        """Waits for the next event and returns it. A cancel loses none.

        After `end` raises its error, or StopAsyncIteration after an orderly close.
        """
        while not self._inbox:
            if isinstance(self._end, Closed) and self._end.code == 1000:
                raise StopAsyncIteration
            if self._end is not None:
                raise self._end
            await self._has_events.wait()
            self._has_events.clear()
        event = self._inbox.take()
        self._has_room.set()
        if isinstance(event, MessagesLost) and self._on_lost is not None:
            self._on_lost(event)
        return event

    async def take_message(self) -> Message:
        """Waits for the next message and returns it, skipping other events. Raises like `take`."""
        while True:
            event = await self.take()
            if isinstance(event, Message):
                return event


class CallIterator(AsyncIterator[E], Generic[E]):
    """Iterator over the results of a coroutine function, until that raises StopAsyncIteration.

    Unlike a generator it can be abandoned anywhere.
    """

    def __init__(self, take: Callable[[], Awaitable[E]]) -> None:
        self._take = take

    async def __anext__(self) -> E:
        return await self._take()
