"""TenantService: tenants, for operators and for the tenants' own admins."""

from __future__ import annotations

from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TENANT_STATE_SUSPENDED, ApiKey
from trunkline.v1.tenant_service_pb2 import (
    CreateApiKeyRequest,
    CreateApiKeyResponse,
    CreateTenantRequest,
    CreateTenantResponse,
    DeleteTenantRequest,
    DeleteTenantResponse,
    EraseUserRequest,
    EraseUserResponse,
    GetTenantRequest,
    GetTenantResponse,
    ListApiKeysRequest,
    ListApiKeysResponse,
    ListRevocationsRequest,
    ListRevocationsResponse,
    ListTenantsRequest,
    ListTenantsResponse,
    ResumeTenantRequest,
    ResumeTenantResponse,
    RevokeApiKeyRequest,
    RevokeApiKeyResponse,
    RevokeTokensRequest,
    RevokeTokensResponse,
    SuspendTenantRequest,
    SuspendTenantResponse,
    UpdateTenantRequest,
    UpdateTenantResponse,
)
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceServicer

from trunkline_router.core.tenants.revocations import to_proto
from trunkline_router.core.validation.validator import check
from trunkline_router.core.values.stored_records import RevocationKind, StoredApiKey
from trunkline_router.rpc.status import rpc_method
from trunkline_router.tenant_admin import TenantAdmin

DEFAULT_PAGE = 100

_KINDS = {
    "user": RevocationKind.USER,
    "token_id": RevocationKind.TOKEN_ID,
    "all": RevocationKind.ALL,
}

_Context = grpc.aio.ServicerContext[Any, Any]


class TenantServicer(TenantServiceServicer):
    """Manages tenants, API keys and revocations."""

    def __init__(self, admin: TenantAdmin) -> None:
        self._admin = admin

    @rpc_method
    async def CreateTenant(  # noqa: N802
        self, request: CreateTenantRequest, context: _Context
    ) -> CreateTenantResponse:
        """See tenant_service.proto."""
        check(request)
        tenant = await self._admin.create(request.tenant, request.settings)
        return CreateTenantResponse(tenant=tenant.to_proto())

    @rpc_method
    async def GetTenant(self, request: GetTenantRequest, context: _Context) -> GetTenantResponse:  # noqa: N802
        """See tenant_service.proto."""
        check(request)
        return GetTenantResponse(tenant=self._admin.tenant(request.tenant).to_proto())

    @rpc_method
    async def ListTenants(self, request: ListTenantsRequest, context: _Context) -> ListTenantsResponse:  # noqa: N802
        """See tenant_service.proto."""
        check(request)
        size = request.page_size or DEFAULT_PAGE
        found = self._admin.tenants(request.after, size + 1)
        return ListTenantsResponse(tenants=[t.to_proto() for t in found[:size]], more=len(found) > size)

    @rpc_method
    async def UpdateTenant(  # noqa: N802
        self, request: UpdateTenantRequest, context: _Context
    ) -> UpdateTenantResponse:
        """See tenant_service.proto."""
        check(request)
        fields = list(request.update_mask.paths)
        tenant = await self._admin.update(request.tenant, request.settings, fields)
        return UpdateTenantResponse(tenant=tenant.to_proto())

    @rpc_method
    async def SuspendTenant(  # noqa: N802
        self, request: SuspendTenantRequest, context: _Context
    ) -> SuspendTenantResponse:
        """See tenant_service.proto."""
        check(request)
        tenant = await self._admin.set_state(request.tenant, TENANT_STATE_SUSPENDED)
        return SuspendTenantResponse(tenant=tenant.to_proto())

    @rpc_method
    async def ResumeTenant(  # noqa: N802
        self, request: ResumeTenantRequest, context: _Context
    ) -> ResumeTenantResponse:
        """See tenant_service.proto."""
        check(request)
        tenant = await self._admin.set_state(request.tenant, TENANT_STATE_ACTIVE)
        return ResumeTenantResponse(tenant=tenant.to_proto())

    @rpc_method
    async def DeleteTenant(  # noqa: N802
        self, request: DeleteTenantRequest, context: _Context
    ) -> DeleteTenantResponse:
        """See tenant_service.proto."""
        check(request)
        return DeleteTenantResponse(messages=await self._admin.delete(request.tenant))

    @rpc_method
    async def CreateApiKey(  # noqa: N802
        self, request: CreateApiKeyRequest, context: _Context
    ) -> CreateApiKeyResponse:
        """See tenant_service.proto."""
        check(request)
        key, secret = await self._admin.create_key(request.tenant, request.name, request.scopes)
        return CreateApiKeyResponse(api_key=_key_to_proto(key), secret=secret)

    @rpc_method
    async def ListApiKeys(self, request: ListApiKeysRequest, context: _Context) -> ListApiKeysResponse:  # noqa: N802
        """See tenant_service.proto."""
        check(request)
        return ListApiKeysResponse(api_keys=map(_key_to_proto, self._admin.keys(request.tenant)))

    @rpc_method
    async def RevokeApiKey(  # noqa: N802
        self, request: RevokeApiKeyRequest, context: _Context
    ) -> RevokeApiKeyResponse:
        """See tenant_service.proto."""
        check(request)
        await self._admin.revoke_key(request.tenant, request.key_id)
        return RevokeApiKeyResponse()

    @rpc_method
    async def RevokeTokens(  # noqa: N802
        self, request: RevokeTokensRequest, context: _Context
    ) -> RevokeTokensResponse:
        """See tenant_service.proto."""
        check(request)
        which = request.WhichOneof("which")
        if which is None or (which == "all" and not request.all):
            problem = "one of user, token_id and all must be set"
            raise catalogue.INVALID_ARGUMENT.refused(field="which", problem=problem)
        subject = "" if which == "all" else getattr(request, which)
        before = request.issued_before.ToMilliseconds() if request.HasField("issued_before") else None
        ended = await self._admin.revoke_tokens(request.tenant, _KINDS[which], subject, before)
        return RevokeTokensResponse(connections=ended)

    @rpc_method
    async def ListRevocations(  # noqa: N802
        self, request: ListRevocationsRequest, context: _Context
    ) -> ListRevocationsResponse:
        """See tenant_service.proto."""
        check(request)
        size = request.page_size or DEFAULT_PAGE
        after = _parse_page_token(request.page_token)
        found = self._admin.tenant(request.tenant).revocations.page(after, size + 1)
        response = ListRevocationsResponse(revocations=map(to_proto, found[:size]))
        if len(found) > size:
            last = found[size - 1]
            response.next_page_token = f"{last.kind:d}:{last.name}"
        return response

    @rpc_method
    async def EraseUser(self, request: EraseUserRequest, context: _Context) -> EraseUserResponse:  # noqa: N802
        """See tenant_service.proto."""
        check(request)
        messages, receipts = await self._admin.erase_user(request.tenant, request.user)
        return EraseUserResponse(messages=messages, receipts=receipts)


def _parse_page_token(page_token: str) -> tuple[int, str]:
    kind, _, name = page_token.partition(":")
    if not page_token:
        return (0, "")
    if not (kind.isascii() and kind.isdigit()):
        raise catalogue.INVALID_ARGUMENT.refused(
            field="page_token", problem="is not a page token of this RPC"
        )
    return (int(kind), name)


def _key_to_proto(key: StoredApiKey) -> ApiKey:
    message = ApiKey(key_id=key.key_id, tenant=key.tenant, name=key.name, scopes=key.scopes)  # type: ignore[arg-type]
    message.created_at.FromMilliseconds(key.created_ms)
    if key.used_ms:
        message.last_used_at.FromMilliseconds(key.used_ms)
    return message
