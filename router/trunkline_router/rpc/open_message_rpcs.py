"""The RPCs of BroadcastService by which backends stream a message in pieces."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    CancelMessageRequest,
    CancelMessageResponse,
    CancelRepliesRequest,
    CancelRepliesResponse,
    EndMessageRequest,
    EndMessageResponse,
    ExtendMessageRequest,
    ExtendMessageResponse,
    OpenMessageRequest,
    OpenMessageResponse,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import CancelledFrame
from trunkline.v1.message_pb2 import ROLE_SYSTEM, ROLE_USER, Author, Message, MessageState

from trunkline_router.core.directory.connections import Link
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.replies.worker_replies import message_ended
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import Position, topic_of
from trunkline_router.rpc import client_calls
from trunkline_router.rpc.client_calls import calling_client, participant
from trunkline_router.rpc.pending_result import PendingResult
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime


class OpenMessageRpcs:
    """Opens, extends, ends and cancels messages, one unary call each."""

    def __init__(self, runtime: RouterRuntime) -> None:
        self._runtime = runtime

    @rpc_method
    async def OpenMessage(  # noqa: N802
        self, request: OpenMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> OpenMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        self._runtime.core.directory.active_tenant(request.address.tenant)
        topic = topic_of(topic_address(request.address))
        if request.author.role == ROLE_USER:
            problem = "must not be USER: only agents and the system stream messages"
            raise catalogue.INVALID_ARGUMENT.refused(field="author.role", problem=problem)
        message = Message(address=request.address, author=request.author, reply_to=request.reply_to)
        if not message.author.role:
            message.author.role = ROLE_SYSTEM
        if request.attributes:
            message.attributes.update(request.attributes)
        opening = PendingOpen(max(1, round(self._runtime.core.reply_lease_s)))
        with self._runtime.step() as core:
            core.message_opener.open(
                topic,
                message,
                scope="open",
                key=request.key,
                producer=request.producer or "another backend",
                listener=opening,
                now=time.monotonic(),
            )
        return await opening.result

    @rpc_method
    async def ExtendMessage(  # noqa: N802
        self, request: ExtendMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ExtendMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        message = await self._find_own(request)
        if message.ended is not None:
            raise message_ended(message.id, message.ended.state)
        blocked_by: set[Link] = set()
        with self._runtime.step() as core:
            core.open_messages.extend(message, request.deltas, blocked_by, time.monotonic())
        await self._runtime.wait_for_room(blocked_by)
        return ExtendMessageResponse(next_index=message.next_index, durable_index=message.durable_index)

    @rpc_method
    async def EndMessage(  # noqa: N802
        self, request: EndMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EndMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        try:
            message = await self._find_own(request)
        except AlreadyEnded as ended:
            return EndMessageResponse(state=ended.message.state)
        if request.state == COMPLETE and request.next_index != message.next_index:
            raise message.gap(request.next_index)
        ending = PendingEnd()
        end = MessageEnd.requested(request)
        with self._runtime.step() as core:
            core.open_messages.end(message, end, ending, None)
        state, position = await ending.result
        return EndMessageResponse(state=state, position=position.to_proto() if position else None)

    @rpc_method
    async def CancelMessage(  # noqa: N802
        self, request: CancelMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CancelMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        ending = PendingEnd()
        if client := calling_client():
            with self._runtime.step() as core:
                core.cancellations.cancel_reply(participant(core, client), request.message_id, ending)
            state, _ = await ending.result
            return CancelMessageResponse(state=state)
        try:
            message = await self._find(request)
        except AlreadyEnded as ended:
            return CancelMessageResponse(state=ended.message.state)
        with self._runtime.step() as core:
            core.open_messages.cancel(message, ending, Author(role=ROLE_SYSTEM))
        state, _ = await ending.result
        return CancelMessageResponse(state=state)

    @rpc_method
    async def CancelReplies(  # noqa: N802
        self, request: CancelRepliesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CancelRepliesResponse:
        """See broadcast_service.proto."""
        check(request)
        cancelling = PendingCancelReplies()
        with self._runtime.step() as core:
            client_calls.cancel_replies(core, request, cancelling)
        outcome = await cancelling.result
        return CancelRepliesResponse(replies=outcome.replies, prevented=outcome.prevented)

    async def _find_own(self, request: Any) -> StreamedMessage:
        """Find the open message of the calling producer.

        Raises Refused PRODUCER_FENCED if another producer has taken it over, and what `_find` raises.
        """
        message = await self._find(request)
        if message.owner is not None or message.producer.epoch != request.epoch:
            raise message.fenced()
        return message

    async def _find(self, request: Any) -> StreamedMessage:
        """Find an open message. Raises AlreadyEnded if it has ended, and Refused if there is none."""
        self._runtime.core.directory.active_tenant(request.tenant)
        message = self._runtime.core.open_messages.get(request.message_id)
        if message is not None and message.topic[0] == request.tenant:
            return message
        stored = await self._runtime.log.message(request.tenant, request.message_id)
        if stored is None:
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
        ended = Message.FromString(stored)
        if ended.state == OPEN:
            # Opened while the log was read.
            return await self._find(request)
        raise AlreadyEnded(ended)


class AlreadyEnded(Refused):
    """Refusal of a change to a message that has ended; carries the message."""

    def __init__(self, message: Message) -> None:
        refusal = message_ended(message.id, message.state)
        super().__init__(refusal.entry, str(refusal), refusal.values)
        self.message = message


class PendingOpen(PendingResult[OpenMessageResponse]):
    """Listener of a backend's OpenMessage."""

    def __init__(self, lease_s: int) -> None:
        super().__init__()
        self._lease_s = lease_s
        self.blocked_by: set[Link] = set()

    def opened(self, message: StreamedMessage) -> None:
        """Return the open message; the caller is its producer."""
        message.owner = None
        self.resolve(
            OpenMessageResponse(
                message=message.snapshot(), epoch=message.producer.epoch, lease_s=self._lease_s
            )
        )

    def ended(self, message: Message) -> None:
        """Return the message, which ended before."""
        self.resolve(OpenMessageResponse(message=message))

    def refused(self, reason: Refused) -> None:
        """Return the refusal; nothing was opened."""
        self.reject(reason)


class PendingCancelReplies(PendingResult[CancelledFrame]):
    """Listener of a CancelReplies."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked_by: set[Link] = set()

    def cancelled(self, outcome: CancelledFrame) -> None:
        """Return the outcome."""
        self.resolve(outcome)

    def refused(self, reason: Refused) -> None:
        """Return the refusal."""
        self.reject(reason)


class PendingEnd(PendingResult[tuple[MessageState.ValueType, Position | None]]):
    """Listener of a backend's EndMessage or CancelMessage; the result is the end's state and position."""

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """Return the state in which the message ended."""
        self.resolve((state, position))

    def not_ended(self, reason: Refused) -> None:
        """Return the refusal; the message is still open."""
        self.reject(reason)
