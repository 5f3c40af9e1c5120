"""HistoryService: backends that read logs."""

from __future__ import annotations

from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.history_service_pb2 import (
    GetMessageRequest,
    GetMessageResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    ResetConversationRequest,
    ResetConversationResponse,
)
from trunkline.v1.history_service_pb2_grpc import HistoryServiceServicer

from router.core.journal import PageRequest
from router.core.limits import check, topic_address
from router.core.topics import Position, TopicKey, topic_of
from router.rpc.status import answers
from router.shell import Shell

DEFAULT_LIMIT = 50
#: A page is one gRPC message, of which a stock client takes at most 4 MiB; the last of its messages
#: may go over this by 1 MiB.
MAX_PAGE_BYTES = 2 << 20


class HistoryServicer(HistoryServiceServicer):
    """Reads and resets logs."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    @answers
    async def ListMessages(  # noqa: N802
        self, request: ListMessagesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListMessagesResponse:
        """See history_service.proto."""
        check(request)
        cursor = request.WhichOneof("cursor")
        page_request = PageRequest(
            self._topic(request.address),
            request.limit or DEFAULT_LIMIT,
            after=Position(request.after.epoch, request.after.seq) if cursor == "after" else None,
            before=Position(request.before.epoch, request.before.seq) if cursor == "before" else None,
            max_bytes=MAX_PAGE_BYTES,
        )
        page = (await self._shell.log.read([page_request]))[0]
        if not page.valid:
            raise catalogue.CURSOR_MISMATCH.refused()
        response = ListMessagesResponse(more=page.more)
        for _, stored in page.messages:
            response.messages.add().MergeFromString(stored)
        return response

    @answers
    async def GetMessage(  # noqa: N802
        self, request: GetMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetMessageResponse:
        """See history_service.proto."""
        check(request)
        self._check_tenant(request.tenant)
        stored = await self._shell.log.message(request.tenant, request.message_id)
        if stored is None:
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
        response = GetMessageResponse()
        response.message.MergeFromString(stored)
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
