"""The RPCs of BroadcastService by which backends say something piece by piece."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    CancelMessageRequest,
    CancelMessageResponse,
    EndMessageRequest,
    EndMessageResponse,
    ExtendMessageRequest,
    ExtendMessageResponse,
    OpenMessageRequest,
    OpenMessageResponse,
)
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import ROLE_SYSTEM, ROLE_USER, Author, Message, MessageState

from trunkline_router.core.directory.connections import Link
from trunkline_router.core.replies.streamed_message import Ended
from trunkline_router.core.replies.streamed_message import StreamedMessage as Opened
from trunkline_router.core.replies.streamed_replies import message_ended
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import Position, topic_of
from trunkline_router.rpc.status import answers
from trunkline_router.runtime import RouterRuntime


class OpenMessageRpcs:
    """Opens, extends, ends and cancels messages; each call is one step."""

    def __init__(self, shell: RouterRuntime) -> None:
        self._shell = shell

    @answers
    async def OpenMessage(  # noqa: N802
        self, request: OpenMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> OpenMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        shell = self._shell
        shell.core.directory.tenant(request.address.tenant)
        topic = topic_of(topic_address(request.address))
        if request.author.role == ROLE_USER:
            problem = "USER is not for messages that are said piece by piece"
            raise catalogue.INVALID_ARGUMENT.refused(field="author.role", problem=problem)
        message = Message(address=request.address, author=request.author, reply_to=request.reply_to)
        if not message.author.role:
            message.author.role = ROLE_SYSTEM
        if request.attributes:
            message.attributes.update(request.attributes)
        opening = OpeningByBackend(max(1, round(shell.core.reply_lease_s)))
        shell.core.opener.open(
            topic,
            message,
            scope="open",
            key=request.key,
            producer=request.producer or "another backend",
            listener=opening,
            now=time.monotonic(),
        )
        shell.settle()
        return await opening.answer

    @answers
    async def ExtendMessage(  # noqa: N802
        self, request: ExtendMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ExtendMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        shell = self._shell
        message = await self._open(request)
        if message.ended is not None:
            raise message_ended(message.id, message.ended.state)
        blocked_by: set[Link] = set()
        try:
            shell.core.open_messages.extend(message, request.deltas, blocked_by, time.monotonic())
        finally:
            shell.settle()
        await shell.room(blocked_by)
        return ExtendMessageResponse(next_index=message.next_index, durable_index=message.durable_index)

    @answers
    async def EndMessage(  # noqa: N802
        self, request: EndMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EndMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        try:
            message = await self._open(request)
        except EndedBefore as ended:
            return EndMessageResponse(state=ended.message.state)
        if request.state == COMPLETE and request.next_index != message.next_index:
            raise message.gap(request.next_index)
        ending = Ending()
        how = Ended(request.state, request.error if request.HasField("error") else None)
        self._shell.core.open_messages.end(message, how, ending, None)
        self._shell.settle()
        state, position = await ending.answer
        return EndMessageResponse(state=state, position=position.to_proto() if position else None)

    @answers
    async def CancelMessage(  # noqa: N802
        self, request: CancelMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CancelMessageResponse:
        """See broadcast_service.proto."""
        check(request)
        try:
            message = await self._find(request)
        except EndedBefore as ended:
            return CancelMessageResponse(state=ended.message.state)
        ending = Ending()
        self._shell.core.open_messages.cancel(message, ending, Author(role=ROLE_SYSTEM))
        self._shell.settle()
        state, _ = await ending.answer
        return CancelMessageResponse(state=state)

    async def _open(self, request: Any) -> Opened:
        """The open message that a producer names. Raises Refused PRODUCER_FENCED for a former one."""
        message = await self._find(request)
        if message.owner is not None or message.producer.epoch != request.epoch:
            raise message.fenced()
        return message

    async def _find(self, request: Any) -> Opened:
        """An open message. Raises Refused where there is none; EndedBefore where it has ended."""
        self._shell.core.directory.tenant(request.tenant)
        message = self._shell.core.open_messages.get(request.message_id)
        if message is not None and message.topic[0] == request.tenant:
            return message
        stored = await self._shell.log.message(request.tenant, request.message_id)
        if stored is None:
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
        ended = Message.FromString(stored)
        if ended.state == OPEN:
            # It was opened while the log was read.
            return await self._find(request)
        raise EndedBefore(ended)


class EndedBefore(Refused):
    """The message has ended already."""

    def __init__(self, message: Message) -> None:
        refusal = message_ended(message.id, message.state)
        super().__init__(refusal.entry, str(refusal), refusal.values)
        self.message = message


class OpeningByBackend:
    """Origin of a backend's open message; `answer` is its outcome."""

    def __init__(self, lease_s: int) -> None:
        self._lease_s = lease_s
        self.blocked_by: set[Link] = set()
        self.answer: asyncio.Future[OpenMessageResponse] = asyncio.get_running_loop().create_future()

    def opened(self, message: Opened) -> None:
        """It is open, and the caller its producer."""
        message.owner = None
        self._answer(
            OpenMessageResponse(
                message=message.snapshot(), epoch=message.producer.epoch, lease_s=self._lease_s
            )
        )

    def ended(self, message: Message) -> None:
        """It has ended before."""
        self._answer(OpenMessageResponse(message=message))

    def _answer(self, response: OpenMessageResponse) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

    def refused(self, reason: Refused) -> None:
        """There is none."""
        if not self.answer.done():
            self.answer.set_exception(reason)


class Ending:
    """Origin of an end; `answer` is how the message has ended, and where."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[tuple[MessageState.ValueType, Position | None]] = loop.create_future()

    def ended(self, state: MessageState.ValueType, position: Position | None) -> None:
        """It has ended."""
        if not self.answer.done():
            self.answer.set_result((state, position))

    def not_ended(self, reason: Refused) -> None:
        """It is as open as before."""
        if not self.answer.done():
            self.answer.set_exception(reason)
