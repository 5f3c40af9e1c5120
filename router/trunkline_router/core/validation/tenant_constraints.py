"""Constraints on tenants, their keys and their clients' tokens; part of `message_constraints.CONSTRAINTS`."""

from __future__ import annotations

from trunkline.v1.message_pb2 import WithoutWorker
from trunkline.v1.tenant_pb2 import AgentMedia, Openness
from trunkline_runtime.reserved_names import RESERVED_FIELDS

from trunkline_router.core.validation.constraints import (
    DIGEST,
    ID,
    OPTIONAL_ID,
    REQUIRED,
    TOKEN,
    WORD,
    Constraint,
    at_most,
    characters,
    each,
    keyed,
    named_or_unset,
    number,
    one_of,
)

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")

_LINE = at_most(256, "characters")
_SHORT = at_most(128, "characters")
_PAGE = number(0, 1000)

TENANT_CONSTRAINTS: dict[str, Constraint] = {
    "AuthFrame.id": TOKEN,
    "AuthFrame.token": at_most(16384, "characters"),
    "ConnectionGranted.grants": REQUIRED,
    "ConnectionGranted.id": TOKEN,
    "Grants.rights": at_most(16, "items"),
    "Grants.groups": at_most(1024, "items"),
    "Grants.token_id": _LINE,
    "TokenHolder.tenant": ID,
    "TokenHolder.user": OPTIONAL_ID,
    "TokenHolder.agents": at_most(1024, "items"),
    "TokenHolder.platforms": at_most(1024, "items"),
    "TokenHolder.persons": at_most(1024, "items"),
    "TenantSettings.open_to": named_or_unset(Openness.DESCRIPTOR),
    "TenantSettings.origins": each(WORD, 0, 64),
    "TenantSettings.default_agent": OPTIONAL_ID,
    **{f"TenantSettings.{field}": each(ID, 0, 1024) for field in RESERVED_FIELDS.values()},
    "TenantSettings.agents": keyed(ID, 1024),
    "AgentSettings.max_attempts": number(0, 1000),
    "AgentSettings.max_retry_s": number(0, 604_800),
    "AgentSettings.concurrency": number(0, 1000),
    "AgentSettings.without_worker": named_or_unset(WithoutWorker.DESCRIPTOR),
    "AgentSettings.expire_after_s": number(0, 31_536_000),
    "AgentSettings.max_waiting": number(0, 10_000_000),
    "AgentSettings.accepts": named_or_unset(AgentMedia.DESCRIPTOR),
    "ClientAuth.keys": at_most(16, "items"),
    "ClientAuth.jwks_url": at_most(2048, "characters"),
    "ClientAuth.audiences": each(WORD, 0, 16),
    "ClientAuth.issuer": _LINE,
    "ClientAuth.token_digests": each(DIGEST, 0, 64),
    "VerificationKey.kid": TOKEN,
    "VerificationKey.algorithm": one_of("HS256, RS256, ES256 or EdDSA", ALGORITHMS),
    "VerificationKey.jwk": at_most(8192, "characters"),
    "CreateTenantRequest.tenant": ID,
    "GetTenantRequest.tenant": ID,
    "ListTenantsRequest.page_size": _PAGE,
    "ListTenantsRequest.after": _SHORT,
    "UpdateTenantRequest.tenant": ID,
    "SuspendTenantRequest.tenant": ID,
    "ResumeTenantRequest.tenant": ID,
    "DeleteTenantRequest.tenant": ID,
    "CreateApiKeyRequest.tenant": ID,
    "CreateApiKeyRequest.name": _SHORT,
    "CreateApiKeyRequest.scopes": each(one_of("SCOPE_BROADCAST to SCOPE_ADMIN", range(1, 6)), 1, 5),
    "ListApiKeysRequest.tenant": ID,
    "RevokeApiKeyRequest.tenant": ID,
    "RevokeApiKeyRequest.key_id": TOKEN,
    "RevokeTokensRequest.tenant": ID,
    "RevokeTokensRequest.user": ID,
    "RevokeTokensRequest.token_id": characters(1, 256),
    "ListRevocationsRequest.tenant": ID,
    "ListRevocationsRequest.page_size": _PAGE,
    "ListRevocationsRequest.page_token": at_most(512, "characters"),
    "ListAuditEntriesRequest.tenant": OPTIONAL_ID,
    "ListAuditEntriesRequest.action": at_most(64, "characters"),
    "ListAuditEntriesRequest.page_size": _PAGE,
    "ListAuditEntriesRequest.page_token": at_most(20, "characters"),
    "EraseUserRequest.tenant": ID,
    "EraseUserRequest.user": ID,
}
