"""HistoryService: backends that read logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.address_pb2 import Position as PositionProto
from trunkline.v1.catalogue import Refused
from trunkline.v1.history_service_pb2 import (
    EditMessageRequest,
    EditMessageResponse,
    GetMessageRequest,
    GetMessageResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListReceiptsRequest,
    ListReceiptsResponse,
    RecallMessageRequest,
    RecallMessageResponse,
    ResetConversationRequest,
    ResetConversationResponse,
)
from trunkline.v1.history_service_pb2_grpc import HistoryServiceServicer
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    ROLE_SYSTEM,
    Author,
    ChangeKind,
    Message,
    Part,
)

from trunkline_router.core.clients.edits import EditRequest
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.log_records import PageRequest, PendingEntry
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import Position, TopicKey, topic_of
from trunkline_router.rpc.status import answers
from trunkline_router.runtime import RouterRuntime

DEFAULT_LIMIT = 50
DEFAULT_RECEIPTS = 100
#: A page is one gRPC message, of which a stock client takes at most 4 MiB; the last of its messages
#: may go over this by 1 MiB.
MAX_PAGE_BYTES = 2 << 20


class HistoryServicer(HistoryServiceServicer):
    """Reads and resets logs."""

    def __init__(self, shell: RouterRuntime) -> None:
        self._shell = shell

    @answers
    async def ListMessages(  # noqa: N802
        self, request: ListMessagesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListMessagesResponse:
        """See history_service.proto."""
        check(request)
        cursor = request.WhichOneof("cursor")
        topic = self._topic(request.address)
        page_request = PageRequest(
            topic,
            request.limit or DEFAULT_LIMIT,
            after=Position(request.after.epoch, request.after.seq) if cursor == "after" else None,
            before=Position(request.before.epoch, request.before.seq) if cursor == "before" else None,
            max_bytes=MAX_PAGE_BYTES,
            messages_only=True,
        )
        messages = None
        while messages is None:
            page = (await self._shell.log.read([page_request]))[0]
            if not page.valid:
                raise catalogue.CURSOR_MISMATCH.refused()
            messages = self._shell.core.open_messages.as_they_are(topic, page)
        return ListMessagesResponse(more=page.more, messages=messages)

    @answers
    async def GetMessage(  # noqa: N802
        self, request: GetMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetMessageResponse:
        """See history_service.proto."""
        check(request)
        self._check_tenant(request.tenant)
        while True:
            is_open = self._shell.core.open_messages.get(request.message_id)
            if is_open is not None and is_open.topic[0] == request.tenant:
                return GetMessageResponse(message=is_open.snapshot())
            stored = await self._shell.log.message(request.tenant, request.message_id)
            if stored is None:
                raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
            message = Message.FromString(stored)
            # One that is open here only has ended since, or begins just now.
            if message.state != OPEN:
                return GetMessageResponse(message=message)

    @answers
    async def EditMessage(  # noqa: N802
        self, request: EditMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EditMessageResponse:
        """See history_service.proto."""
        position = await self._change(request, CHANGE_KIND_EDITED, request.parts)
        return EditMessageResponse(position=position)

    @answers
    async def RecallMessage(  # noqa: N802
        self, request: RecallMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RecallMessageResponse:
        """See history_service.proto."""
        return RecallMessageResponse(position=await self._change(request, CHANGE_KIND_RECALLED))

    async def _change(
        self, request: Any, kind: ChangeKind.ValueType, parts: Sequence[Part] = ()
    ) -> PositionProto | None:
        check(request)
        self._check_tenant(request.tenant)
        changed = PendingEdit()
        wish = EditRequest(
            tenant=request.tenant,
            message_id=request.message_id,
            kind=kind,
            author=Author(role=ROLE_SYSTEM),
            may=lambda message: None,
            listener=changed,
            unchanged=changed.unchanged,
            parts=parts,
        )
        self._shell.core.changing.wish(wish)
        self._shell.settle()
        return await changed.position

    @answers
    async def ListReceipts(  # noqa: N802
        self, request: ListReceiptsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListReceiptsResponse:
        """See history_service.proto."""
        check(request)
        topic = self._topic(request.address)
        size = request.page_size or DEFAULT_RECEIPTS
        found = await self._shell.log.receipts(topic, request.after, size + 1)
        epoch = (await self._shell.log.heads([topic]))[0].epoch
        response = ListReceiptsResponse(more=len(found) > size)
        for receipt in found[:size]:
            added = response.receipts.add(user=receipt.user)
            if receipt.delivered:
                added.delivered.epoch, added.delivered.seq = epoch, receipt.delivered
            if receipt.read:
                added.read.epoch, added.read.seq = epoch, receipt.read
            added.updated_at.FromMilliseconds(receipt.updated_ms)
        return response

    @answers
    async def ResetConversation(  # noqa: N802
        self, request: ResetConversationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ResetConversationResponse:
        """See history_service.proto."""
        check(request)
        topic = self._topic(request.address)
        shell = self._shell

        async def reset() -> int:
            erased = await shell.log.reset(topic)
            shell.core.reset(topic)
            return erased

        erased = await shell.exclusively(reset)
        shell.settle()
        return ResetConversationResponse(erased=erased)

    def _topic(self, address: Address) -> TopicKey:
        self._check_tenant(address.tenant)
        return topic_of(topic_address(address))

    def _check_tenant(self, tenant: str) -> None:
        self._shell.core.directory.tenant(tenant)


class PendingEdit:
    """Origin of a backend's edit or recall; `position` is its outcome."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        self.blocked_by: set[Link] = set()
        self.position: asyncio.Future[PositionProto | None] = asyncio.get_running_loop().create_future()

    def committed(self, pending: PendingEntry) -> None:
        """It is on disk."""
        if not self.position.done():
            self.position.set_result(pending.position)

    def unchanged(self) -> None:
        """It was recalled before."""
        if not self.position.done():
            self.position.set_result(None)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Nothing was changed."""
        if not self.position.done():
            self.position.set_exception(reason)
