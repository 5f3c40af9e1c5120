"""AuditService: who changed what, for operators and for the tenants' own admins."""

from __future__ import annotations

import json
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.audit_service_pb2 import AuditEntry, ListAuditEntriesRequest, ListAuditEntriesResponse
from trunkline.v1.audit_service_pb2_grpc import AuditServiceServicer

from trunkline_router.active_call import ACTIVE_CALL, UNCHECKED_CALL
from trunkline_router.core.tenants.callers import CallerKind
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.stored_records import REFUSED, AuditQuery, AuditRecord
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime

DEFAULT_PAGE = 100
#: States before and after in a page, as a page is one gRPC message. Its last entry may exceed this.
MAX_PAGE_CHARS = 2 << 20

_Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(AuditServiceServicer):
    """Lists audit entries."""

    def __init__(self, runtime: RouterRuntime) -> None:
        self._runtime = runtime

    @rpc_method
    async def ListAuditEntries(  # noqa: N802
        self, request: ListAuditEntriesRequest, context: _Context
    ) -> ListAuditEntriesResponse:
        """See audit_service.proto."""
        check(request)
        is_operator = ACTIVE_CALL.get(UNCHECKED_CALL).caller.kind is CallerKind.OPERATOR
        since_ms = request.since.ToMilliseconds() if request.HasField("since") else 0
        if request.tenant and not is_operator:
            # Entries outlive their tenant, and then only the operator may read them, even if there is
            # another tenant of this name.
            tenant = self._runtime.core.directory.active_tenant(request.tenant)
            since_ms = max(since_ms, tenant.created_ms)
        size = request.page_size or DEFAULT_PAGE
        before_id = _parse_page_token(request.page_token)
        query = AuditQuery(request.tenant, request.action, since_ms, before_id, size + 1, MAX_PAGE_CHARS)
        found = await self._runtime.log.audit(query)
        response = ListAuditEntriesResponse(entries=[_to_proto(*row) for row in found[:size]])
        is_full = sum(record.size for _, record in found) >= MAX_PAGE_CHARS
        if found and (len(found) > size or is_full):
            response.next_page_token = str(response.entries[-1].id)
        return response


def _parse_page_token(page_token: str) -> int:
    if not page_token:
        return 0
    if not (page_token.isascii() and page_token.isdigit() and 0 < int(page_token) < 1 << 63):
        problem = "is not a page token of this RPC"
        raise catalogue.INVALID_ARGUMENT.refused(field="page_token", problem=problem)
    return int(page_token)


def _to_proto(number: int, record: AuditRecord) -> AuditEntry:
    entry = AuditEntry(
        id=number,
        tenant=record.tenant,
        actor=record.actor,
        source=record.source,
        action=record.action.removesuffix(REFUSED),
        target=record.target,
        before=record.before,
        after=record.after,
    )
    if record.action.endswith(REFUSED):
        entry.error = json.loads(record.after)["error"]
    entry.at.FromMilliseconds(record.at_ms)
    return entry
