"""HistoryService: reads, edits and resets of topics' logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.address_pb2 import Position as PositionProto
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.history_service_pb2 import (
    EditMessageRequest,
    EditMessageResponse,
    GetMessageRequest,
    GetMessageResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ListReceiptsRequest,
    ListReceiptsResponse,
    MarkReadRequest,
    MarkReadResponse,
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

from trunkline_router.audit_trail import AuditTrail
from trunkline_router.core.clients.client_messages import own_edit
from trunkline_router.core.clients.edits import EditRequest
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.validation.validator import check, topic_address
from trunkline_router.core.values.log_records import AppendResult, PageRequest, PendingEntry
from trunkline_router.core.values.message_states import OPEN
from trunkline_router.core.values.topics import Position, TopicKey, describe, position_of, topic_of
from trunkline_router.rpc import client_calls
from trunkline_router.rpc.client_calls import calling_client, participant
from trunkline_router.rpc.pending_result import PendingResult
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime

DEFAULT_LIMIT = 50
DEFAULT_RECEIPTS = 100
#: A page is one gRPC message, and clients accept 4 MiB by default. The page's last message may exceed this by
#: 1 MiB.
MAX_PAGE_BYTES = 2 << 20


class HistoryServicer(HistoryServiceServicer):
    """Reads, edits and resets logs for backends and, as far as they may, for clients."""

    def __init__(self, runtime: RouterRuntime, audit: AuditTrail) -> None:
        self._runtime = runtime
        self._audit = audit

    @rpc_method
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
            page = (await self._runtime.log.read([page_request]))[0]
            if page.damaged_seq:
                raise catalogue.DATA_DAMAGED.refused()
            if not page.valid:
                raise catalogue.CURSOR_MISMATCH.refused()
            messages = self._runtime.core.open_messages.current_messages(topic, page)
        return ListMessagesResponse(more=page.more, messages=messages)

    @rpc_method
    async def GetMessage(  # noqa: N802
        self, request: GetMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetMessageResponse:
        """See history_service.proto."""
        check(request)
        self._check_tenant(request.tenant)
        while True:
            streamed = self._runtime.core.open_messages.get(request.message_id)
            if streamed is not None and streamed.topic[0] == request.tenant:
                _check_visible(streamed.topic, request)
                return GetMessageResponse(message=streamed.snapshot())
            stored = await self._runtime.log.message(request.tenant, request.message_id)
            if stored is None:
                raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
            message = Message.FromString(stored)
            _check_visible(topic_of(message.address), request)
            # OPEN in the log alone: it ended since, or opens right now. Look again.
            if message.state != OPEN:
                return GetMessageResponse(message=message)

    @rpc_method
    async def EditMessage(  # noqa: N802
        self, request: EditMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EditMessageResponse:
        """See history_service.proto."""
        position = await self._change(request, CHANGE_KIND_EDITED, request.parts)
        return EditMessageResponse(position=position)

    @rpc_method
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
        edit = PendingEdit()

        def already_recalled() -> None:
            edit.resolve(None)

        if client := calling_client():
            editor = participant(self._runtime.core, client)
            wanted = own_edit(editor, request.message_id, kind, edit, already_recalled)
        else:
            wanted = EditRequest(
                tenant=request.tenant,
                message_id=request.message_id,
                kind=kind,
                author=Author(role=ROLE_SYSTEM),
                authorize=lambda message: None,
                listener=edit,
                already_recalled=already_recalled,
            )
        wanted.parts = parts
        with self._runtime.step() as core:
            core.edits.submit(wanted)
        return await edit.result

    @rpc_method
    async def ListReceipts(  # noqa: N802
        self, request: ListReceiptsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListReceiptsResponse:
        """See history_service.proto."""
        check(request)
        topic = self._topic(request.address)
        size = request.page_size or DEFAULT_RECEIPTS
        found = await self._runtime.log.receipts(topic, request.after, size + 1)
        epoch = (await self._runtime.log.heads([topic]))[0].epoch
        response = ListReceiptsResponse(more=len(found) > size)
        for receipt in found[:size]:
            added = response.receipts.add(user=receipt.user)
            if receipt.delivered:
                added.delivered.epoch, added.delivered.seq = epoch, receipt.delivered
            if receipt.read:
                added.read.epoch, added.read.seq = epoch, receipt.read
            added.updated_at.FromMilliseconds(receipt.updated_ms)
        return response

    @rpc_method
    async def MarkRead(  # noqa: N802
        self, request: MarkReadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> MarkReadResponse:
        """See history_service.proto."""
        check(request)
        topic = self._topic(request.address)
        user = client_calls.reader(calling_client(), request)
        position = position_of(request.position)
        # The log compares epochs again, so a reset in the meantime does no harm.
        head = (await self._runtime.log.heads([topic]))[0]
        marking = PendingRead()
        with self._runtime.step() as core:
            known = core.receipts.mark_read(topic, user, position, head, marking)
        if known is not None:
            return MarkReadResponse(position=known.to_proto())
        read = await marking.result
        return MarkReadResponse(position=read.position, at=read.at)

    @rpc_method
    async def ResetConversation(  # noqa: N802
        self, request: ResetConversationRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ResetConversationResponse:
        """See history_service.proto."""
        check(request)
        topic = self._topic(request.address)
        core, log = self._runtime.core, self._runtime.log
        target, tenant = describe(request.address), request.address.tenant
        await self._audit.write(self._audit.record("ResetConversation", target, tenant=tenant))
        erased = await self._runtime.write(lambda: log.reset(topic), lambda _: core.topic_erased(topic))
        return ResetConversationResponse(erased=erased)

    def _topic(self, address: Address) -> TopicKey:
        """The topic that a request names. Raises Refused if the caller is a client that may not name it."""
        self._check_tenant(address.tenant)
        if client := calling_client():
            client.check_conversation(address)
        return topic_of(topic_address(address))

    def _check_tenant(self, tenant: str) -> None:
        self._runtime.core.directory.active_tenant(tenant)


def _check_visible(topic: TopicKey, request: GetMessageRequest) -> None:
    """Raise Refused MESSAGE_NOT_FOUND if the caller is a client, and its token does not allow the topic."""
    client = calling_client()
    if client is not None and not client.allows(topic):
        raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)


class PendingRead(PendingResult[ReadFrame]):
    """Commit listener of a MarkRead; the result is the entry of the log."""

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        super().__init__()
        self.blocked_by: set[Link] = set()

    def committed(self, pending: PendingEntry) -> None:
        """Return the committed entry."""
        assert pending.read is not None
        self.resolve(pending.read)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Return the refusal; an erased log has no position of before."""
        is_erased = pending.result is AppendResult.NO_REPEAT
        self.reject(catalogue.CURSOR_MISMATCH.refused() if is_erased else reason)


class PendingEdit(PendingResult[PositionProto | None]):
    """Commit listener of a backend's edit or recall.

    The result is the position of the change, or None for a recall of a message that is recalled already.
    """

    connection: ConnectedClient | None = None

    def __init__(self) -> None:
        super().__init__()
        self.blocked_by: set[Link] = set()

    def committed(self, pending: PendingEntry) -> None:
        """Return the position of the change."""
        self.resolve(pending.position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """Return the refusal; nothing was changed."""
        self.reject(reason)
