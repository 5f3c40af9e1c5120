"""Declares tenants and what belongs to them: on disk first, then in the core, then on the edges."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest

import structlog
from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import (
    TENANT_STATE_ACTIVE,
    TENANT_STATE_DELETING,
    TenantSettings,
    TenantState,
)

from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.validation.tenant_validation import check_settings, kept_secrets, set_fields
from trunkline_router.core.values.log_records import (
    Cursor,
    ErasedPiece,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()

#: Tenants that are named in one line of the log.
MOST_LOGGED = 20

#: By how much clocks may differ.
CLOCKS_MS = 60_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class TenantAdmin:
    """What TenantService, the tenants file and the environment say of tenants.

    One change at a time. Every method may raise LogUnavailable, and has then changed nothing; cancelled, it
    leaves open whether it has.
    """

    def __init__(self, shell: RouterRuntime, now_ms: Callable[[], int] = _now_ms) -> None:
        self._shell = shell
        self._now_ms = now_ms
        self._changing = asyncio.Lock()
        self._deleting = asyncio.Lock()

    # Tenants

    def tenant(self, name: str) -> Tenant:
        """A tenant, also one that is suspended. Raises Refused UNKNOWN_TENANT, also while it is deleted."""
        tenant = self.known(name)
        if tenant is None or tenant.state == TENANT_STATE_DELETING:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        return tenant

    def known(self, name: str) -> Tenant | None:
        """A tenant, if there is one."""
        return self._shell.core.directory.tenants.get(name)

    def tenants(self, after: str, limit: int) -> list[Tenant]:
        """Tenants by name, those after this one."""
        tenants = self._shell.core.directory.tenants
        return [tenants[name] for name in nsmallest(limit, (name for name in tenants if name > after))]

    async def create(self, name: str, settings: TenantSettings) -> Tenant:
        """Declare a tenant. Raises Refused TENANT_EXISTS."""
        async with self._changing:
            if name in self._shell.core.directory.tenants:
                raise catalogue.TENANT_EXISTS.refused(tenant=name)
            return (await self._declare({name: settings}))[0]

    async def update(self, name: str, settings: TenantSettings, fields: Sequence[str]) -> Tenant:
        """Set these fields of a tenant's settings, or all of them. Raises Refused."""
        async with self._changing:
            present = self.tenant(name).settings
            wanted = TenantSettings()
            wanted.CopyFrom(present if fields else settings)
            if fields:
                set_fields(wanted, settings, fields)
            return (await self._declare({name: kept_secrets(wanted, present)}))[0]

    async def ensure(self, tenants: Mapping[str, TenantSettings]) -> None:
        """Have tenants be as a file says, whatever they were: all of them, or none. Raises Refused."""
        async with self._changing:
            changed = {
                name: settings
                for name, settings in tenants.items()
                if (known := self.known(name)) is None or known.settings != settings
            }
            await self._declare(changed)

    async def set_state(self, name: str, state: TenantState.ValueType) -> Tenant:
        """Suspend or resume a tenant."""
        async with self._changing:
            tenant = self.tenant(name)
            return tenant if tenant.state == state else await self._set_state(tenant, state)

    async def _declare(self, wanted: Mapping[str, TenantSettings]) -> list[Tenant]:
        """New tenants, and known ones with other settings."""
        for settings in wanted.values():
            check_settings(settings)
        self._shell.core.tenancy.claims.check(wanted)
        now_ms = self._now_ms()
        stored = []
        for name, settings in wanted.items():
            known = self.known(name)
            content = settings.SerializeToString(deterministic=True)
            state, created_ms = (
                (known.state, known.created_ms) if known else (int(TENANT_STATE_ACTIVE), now_ms)
            )
            stored.append(StoredTenant(name, state, content, created_ms, now_ms))
        return await self._commit(stored)

    async def _set_state(self, tenant: Tenant, state: TenantState.ValueType) -> Tenant:
        content = tenant.settings.SerializeToString(deterministic=True)
        stored = StoredTenant(tenant.name, state, content, tenant.created_ms, self._now_ms())
        return (await self._commit([stored]))[0]

    async def _commit(self, stored: list[StoredTenant]) -> list[Tenant]:
        if not stored:
            return []
        await self._shell.log.register(Registration(tenants=stored))
        tenants = [self._shell.core.tenancy.declare(each) for each in stored]
        for tenant in tenants:
            if not tenant.is_active:
                self._shell.end_streams_of(tenant=tenant.name, reason=tenant.inactive())
        self._shell.settle()
        shown = {each.name: TenantState.Name(each.state) for each in tenants[:MOST_LOGGED]}  # type: ignore[arg-type]
        _log.info("tenants declared", states=shown, tenants=len(tenants))
        return tenants

    async def delete(self, name: str) -> int:
        """Disconnect a tenant and erase it. Returns how many messages it had."""
        async with self._changing:
            tenant = self.tenant(name)
            # From here on it takes no part, and whatever interrupts this, it is gone on with.
            await self._set_state(tenant, TENANT_STATE_DELETING)
        return await self.finish_deletion(name)

    async def finish_deletion(self, name: str) -> int:
        """Erase a tenant that is being deleted. Returns how many messages were left."""
        erased = 0
        async with self._deleting:
            while name in self._shell.core.directory.tenants:
                piece = await self._erase_some(name)
                erased += piece.messages
                if piece.cursor is None:
                    self._shell.core.api_keys.forget_tenant(name)
                    self._shell.core.tenancy.gone(name)
                    self._shell.settle()
                    _log.info("tenant deleted", tenant=name, messages=erased)
        return erased

    async def _erase_some(self, name: str) -> ErasedPiece:
        async def erase() -> ErasedPiece:
            piece = await self._shell.log.erase_tenant(name)
            self._shell.core.tenant_erased(name, piece.topics)
            return piece

        piece: ErasedPiece = await self._shell.exclusively(erase)
        self._shell.settle()
        return piece

    async def erase_user(self, name: str, user: str) -> tuple[int, int]:
        """Erase what a user has said. Returns how many messages, and receipts, those were."""
        tenant = self.tenant(name)
        messages = receipts = 0
        cursor: Cursor | None = None
        while True:

            async def erase(cursor: Cursor | None = cursor) -> ErasedPiece:
                piece = await self._shell.log.erase_user(name, user, cursor)
                self._shell.core.user_erased(name, user, piece.topics)
                return piece

            piece: ErasedPiece = await self._shell.exclusively(erase)
            self._shell.settle()
            messages += piece.messages
            receipts += piece.receipts
            cursor = piece.cursor
            if cursor is None:
                tenant.messages_erased += messages
                return messages, receipts

    # API keys

    async def create_key(self, name: str, title: str, scopes: Iterable[int]) -> tuple[StoredApiKey, str]:
        """Make an API key. Returns it with its secret."""
        async with self._changing:
            self.tenant(name)
            keys = self._shell.core.api_keys
            key, secret = keys.make(name, title, scopes, self._now_ms(), os.urandom)
            await self._shell.log.register(Registration(api_keys=[key]))
            keys.add(key)
            return key, secret

    def keys(self, name: str) -> list[StoredApiKey]:
        """A tenant's API keys."""
        self.tenant(name)
        return self._shell.core.api_keys.of(name)

    async def revoke_key(self, name: str, key_id: str) -> None:
        """Take an API key back; what goes on with it ends. Raises Refused API_KEY_NOT_FOUND."""
        async with self._changing:
            self.tenant(name)
            keys = self._shell.core.api_keys
            if key_id not in {key.key_id for key in keys.of(name)}:
                raise catalogue.API_KEY_NOT_FOUND.refused(key_id=key_id)
            await self._shell.log.register(Registration(keys_gone=[key_id]))
            keys.remove(name, key_id)
            reason = catalogue.UNAUTHORIZED.refused(problem="the API key was revoked")
            self._shell.end_streams_of(key_id=key_id, reason=reason)

    # Tokens

    async def revoke_tokens(
        self, name: str, kind: RevocationKind, what: str, issued_before_ms: int | None
    ) -> int:
        """Take tokens back. Returns how many connections that ends. Raises Refused."""
        async with self._changing:
            tenant = self.tenant(name)
            tenant.revocations.check_room()
            now_ms = self._now_ms()
            before_ms = now_ms if issued_before_ms is None else issued_before_ms
            if before_ms > now_ms + CLOCKS_MS:
                problem = "must not lie in the future: tokens that are issued until then would be refused"
                raise catalogue.INVALID_ARGUMENT.refused(field="issued_before", problem=problem)
            if kind is RevocationKind.TOKEN_ID:
                before_ms = 0
            revocation = StoredRevocation(name, kind, what, before_ms, now_ms)
            await self._shell.log.register(Registration(revocations=[revocation]))
            ended = self._shell.core.tenancy.revoke(revocation)
            self._shell.settle()
            return ended
