"""Requests of a client, built from plain values and sent to its edge."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from trunkline.v1 import frame_pb2 as frames
from trunkline.v1.address_pb2 import Conversation, Position

from trunkline_client import builders
from trunkline_client.events import Ack, CancelResult, GroupJoined, HistoryPage
from trunkline_client.request_sender import RequestSender

#: Longest time that a signal lives without being sent again.
MAX_SIGNAL_TTL_S = 300


class ClientRequests:
    """One method for each kind of request; errors are those of `RequestSender.request`."""

    def __init__(self, sender: RequestSender) -> None:
        self._sender = sender

    async def send(
        self,
        content: builders.Content,
        *,
        reply_to: str = "",
        attributes: Mapping[str, str] | None = None,
        conversation: str | Conversation | None = None,
        without_worker: builders.WithoutWorkerName = "",
        message_id: str,
        timeout_s: float,
    ) -> Ack:
        """Sends a message."""
        message = frames.MessageFrame(
            id=message_id,
            parts=builders.parts(content),
            reply_to=reply_to,
            attributes=dict(attributes or {}),
            conversation=builders.optional_conversation(conversation),
            without_worker=builders.without_worker_value(without_worker),
        )
        return await self._change(frames.ClientFrame(message=message), timeout_s)

    async def edit(
        self, message_id: str, content: builders.Content, request_id: str, timeout_s: float
    ) -> Ack:
        """Replaces the parts of a message."""
        parts = builders.parts(content)
        frame = frames.EditFrame(id=request_id, message_id=message_id, parts=parts)
        return await self._change(frames.ClientFrame(edit=frame), timeout_s)

    async def recall(self, message_id: str, request_id: str, timeout_s: float) -> Ack:
        """Recalls a message."""
        frame = frames.RecallFrame(id=request_id, message_id=message_id)
        return await self._change(frames.ClientFrame(recall=frame), timeout_s)

    async def cancel(
        self, message_id: str, client_id: str, conversation: str | Conversation | None, timeout_s: float
    ) -> CancelResult:
        """Cancels a reply, or all replies to a message."""
        frame = frames.CancelFrame(
            id=uuid.uuid4().hex, conversation=builders.optional_conversation(conversation)
        )
        if message_id:
            frame.message_id = message_id
        else:
            frame.client_id = client_id
        request = frames.ClientFrame(cancel=frame)
        answer = await self._sender.request(request, frames.CancelledFrame, timeout_s)
        return CancelResult({each.message_id: each.state for each in answer.replies}, answer.prevented)

    async def subscribe(self, group: str | Conversation, timeout_s: float) -> GroupJoined:
        """Joins a group."""
        frame = frames.SubscribeFrame(id=uuid.uuid4().hex, conversation=builders.group(group))
        request = frames.ClientFrame(subscribe=frame)
        joined = await self._sender.request(request, frames.SubscribedFrame, timeout_s)
        return GroupJoined(joined.address, joined.position, joined.recovered)

    async def unsubscribe(self, group: str | Conversation, timeout_s: float) -> None:
        """Leaves a group."""
        frame = frames.UnsubscribeFrame(id=uuid.uuid4().hex, conversation=builders.group(group))
        request = frames.ClientFrame(unsubscribe=frame)
        await self._sender.request(request, frames.UnsubscribedFrame, timeout_s)

    async def read_history(
        self,
        conversation: str | Conversation | None,
        *,
        before: Position | None = None,
        after: Position | None = None,
        limit: int = 0,
        timeout_s: float = 10.0,
    ) -> HistoryPage:
        """Reads a page of a conversation's log. Raises ValueError for both positions at once."""
        if before is not None and after is not None:
            raise ValueError("a page lies before a position or after one, not both")
        frame = frames.HistoryFrame(
            id=uuid.uuid4().hex,
            conversation=builders.optional_conversation(conversation),
            before=before,
            after=after,
            limit=limit,
        )
        request = frames.ClientFrame(history=frame)
        page = await self._sender.request(request, frames.HistoryPageFrame, timeout_s, changes=False)
        return HistoryPage(list(page.messages), page.more)

    async def ping(self, timeout_s: float) -> None:
        """Sends a ping and waits for its pong."""
        request = frames.ClientFrame(ping=frames.PingFrame(id=uuid.uuid4().hex))
        await self._sender.request(request, frames.PongFrame, timeout_s, changes=False)

    def signal(
        self,
        name: str,
        data: Mapping[str, Any] | None,
        conversation: str | Conversation | None,
        ttl_s: float | None,
    ) -> None:
        """Sends a signal. Raises like `RequestSender.send_unanswered`, and ValueError for a bad `ttl_s`."""
        if ttl_s is not None and not 0.001 <= ttl_s <= MAX_SIGNAL_TTL_S:
            raise ValueError(f"ttl_s must be 0.001 to {MAX_SIGNAL_TTL_S}, not {ttl_s}")
        frame = frames.SignalFrame(
            name=name,
            conversation=builders.optional_conversation(conversation),
            ttl_ms=round(1000 * (ttl_s or 0)),
        )
        frame.data.update(dict(data or {}))
        self._sender.send_unanswered(frames.ClientFrame(signal=frame))

    def end_signal(self, name: str, conversation: str | Conversation | None) -> None:
        """Ends a signal. Raises like `RequestSender.send_unanswered`."""
        frame = frames.SignalFrame(
            name=name,
            conversation=builders.optional_conversation(conversation),
            end=frames.SIGNAL_END_STOPPED,
        )
        self._sender.send_unanswered(frames.ClientFrame(signal=frame))

    def mark_delivered(self, position: Position, conversation: str | Conversation | None) -> None:
        """Reports a delivered position. Raises like `RequestSender.send_unanswered`."""
        frame = frames.DeliveredFrame(
            position=position, conversation=builders.optional_conversation(conversation)
        )
        self._sender.send_unanswered(frames.ClientFrame(delivered=frame))

    async def _change(self, request: frames.ClientFrame, timeout_s: float) -> Ack:
        ack = await self._sender.request(request, frames.AckFrame, timeout_s)
        return Ack(ack.message_id, ack.position, ack.address)
