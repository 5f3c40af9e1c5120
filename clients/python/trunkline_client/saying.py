"""What a client asks of its edge, and tells it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from trunkline.v1 import frame_pb2 as frames
from trunkline.v1.address_pb2 import Conversation, Position

from trunkline_client import builders
from trunkline_client.events import Ack, CancelResult, GroupJoined, HistoryPage
from trunkline_client.reconnecting_transport import ReconnectingTransport
from trunkline_client.request_sender import RequestSender
from trunkline_client.session import Session


class Saying:
    """The half of a client that speaks; see `Client`."""

    _session: Session
    _carrier: ReconnectingTransport
    _requests: RequestSender
    _clock: Callable[[], float]
    _end: BaseException | None

    # Saying.

    async def send(
        self,
        content: builders.Content,
        *,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Says something, to the conversation connected to or to a group joined; returns once it is on disk.

        Survives reconnects: until the answer is there the message is sent again with the same id; so it is
        where the edge was sent too much, after a pause, with what is said meanwhile behind it. Raises
        Refused where the edge refuses it, TimedOut without an answer in time and Closed when the
        connection ends for good; after TimedOut or a cancel it may still be taken, and sending again
        with the same `id` is safe.
        """
        message = frames.MessageFrame(
            id=id or uuid.uuid4().hex,
            parts=builders.parts(content),
            reply_to=reply_to,
            attributes=dict(attributes or {}),
            conversation=None if conversation is None else builders.conversation(conversation),
        )
        request = frames.ClientFrame(message=message)
        ack = await self._requests.ask(request, frames.AckFrame, timeout_s)
        return Ack(ack.message_id, ack.position, ack.address)

    async def subscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> GroupJoined:
        """Joins a group, and joins it again after each reconnect. Errors are as for `send`.

        Goes on from the group's position among those passed as `resume`, if there is one.
        """
        frame = frames.SubscribeFrame(id=uuid.uuid4().hex, conversation=builders.group(group))
        request = frames.ClientFrame(subscribe=frame)
        joined = await self._requests.ask(request, frames.SubscribedFrame, timeout_s)
        return GroupJoined(joined.address, joined.position, joined.recovered)

    async def unsubscribe(self, group: str | Conversation, *, timeout_s: float = 10.0) -> None:
        """Leaves a group and forgets its position. Errors are as for `send`."""
        frame = frames.UnsubscribeFrame(id=uuid.uuid4().hex, conversation=builders.group(group))
        request = frames.ClientFrame(unsubscribe=frame)
        await self._requests.ask(request, frames.UnsubscribedFrame, timeout_s)

    async def read_history(
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
            conversation=None if conversation is None else builders.conversation(conversation),
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

        Raises Disconnected while not connected, as nothing is kept here either, and QueueFull where the
        socket takes no more.
        """
        frame = frames.SignalFrame(name=name)
        frame.data.update(dict(data or {}))
        if conversation is not None:
            frame.conversation.CopyFrom(builders.conversation(conversation))
        self._requests.say(frames.ClientFrame(signal=frame))

    async def mark_read(self, position: Position, *, conversation: str | Conversation | None = None) -> None:
        """Tells the others how far this user has read.

        Returns at once; it is sent again after each reconnect until it has come back, which shows as a
        ReadFrame in `events`. Raises what ended the client.
        """
        frame = frames.ReadFrame(position=position)
        if conversation is not None:
            frame.conversation.CopyFrom(builders.conversation(conversation))
        if self._end is not None:
            raise self._end
        for each in self._session.read(frame):
            self._carrier.send(each)

    async def mark_delivered(
        self, position: Position, *, conversation: str | Conversation | None = None
    ) -> None:
        """Tells the authors that this user has been given all up to here. Errors are as for `signal`."""
        frame = frames.DeliveredFrame(position=position)
        if conversation is not None:
            frame.conversation.CopyFrom(builders.conversation(conversation))
        self._requests.say(frames.ClientFrame(delivered=frame))

    # Changing what was said.

    async def cancel(
        self,
        *,
        message_id: str = "",
        client_id: str = "",
        conversation: str | Conversation | None = None,
        timeout_s: float = 10.0,
    ) -> CancelResult:
        """Stops a reply, or all replies to a message of this user by the `id` that it was sent with.

        The latter also before there is any. Returns once that is on disk. Raises ValueError unless one
        of the two is given; other errors are as for `send`.
        """
        if bool(message_id) == bool(client_id):
            raise ValueError("a cancel names a reply's message_id, or a message's client_id")
        frame = frames.CancelFrame(id=uuid.uuid4().hex)
        if message_id:
            frame.message_id = message_id
        else:
            frame.client_id = client_id
        if conversation is not None:
            frame.conversation.CopyFrom(builders.conversation(conversation))
        request = frames.ClientFrame(cancel=frame)
        answer = await self._requests.ask(request, frames.CancelledFrame, timeout_s)
        return CancelResult({each.message_id: each.state for each in answer.replies}, answer.prevented)

    async def edit(
        self,
        message_id: str,
        content: builders.Content,
        *,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Replaces what this user said; returns once that is on disk, with the place of the change.

        Errors, and what the `id` is for, are as for `send`.
        """
        frame = frames.EditFrame(
            id=id or uuid.uuid4().hex, message_id=message_id, parts=builders.parts(content)
        )
        return await self._change(frames.ClientFrame(edit=frame), timeout_s)

    async def recall(
        self,
        message_id: str,
        *,
        id: str = "",  # noqa: A002 -- the contract's word
        timeout_s: float = 10.0,
    ) -> Ack:
        """Takes back what this user said; like `edit`.

        The position is empty where it had been taken back before.
        """
        frame = frames.RecallFrame(id=id or uuid.uuid4().hex, message_id=message_id)
        return await self._change(frames.ClientFrame(recall=frame), timeout_s)

    async def _change(self, request: frames.ClientFrame, timeout_s: float) -> Ack:
        ack = await self._requests.ask(request, frames.AckFrame, timeout_s)
        return Ack(ack.message_id, ack.position, ack.address)
