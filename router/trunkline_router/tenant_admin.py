"""Changes tenants and what belongs to them: on disk first, then in the core, then on the edges."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, TypeVar

import structlog
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import Scope
from trunkline.v1.tenant_pb2 import (
    TENANT_STATE_ACTIVE,
    TENANT_STATE_DELETING,
    TENANT_STATE_SUSPENDED,
    TenantSettings,
    TenantState,
)

from trunkline_router.audit_trail import ACTOR, AuditTrail, changed_settings
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.validation.tenant_validation import check_settings, restore_secrets, set_fields
from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.stored_records import (
    AuditRecord,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()

#: Tenants named in one log line.
MAX_LOGGED_TENANTS = 20

#: Tolerated clock skew of callers.
CLOCK_SKEW_MS = 60_000

_STATE_ACTIONS = {
    TENANT_STATE_ACTIVE: "ResumeTenant",
    TENANT_STATE_SUSPENDED: "SuspendTenant",
    TENANT_STATE_DELETING: "DeleteTenant",
}

R = TypeVar("R")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class TenantAdmin:
    """Operations on tenants for TenantService, the tenants file and the environment.

    Changes run one at a time. Every method may raise LogUnavailable and has then changed nothing. A cancelled
    call may or may not have taken effect, but the log and the core agree on it.
    """

    def __init__(
        self, runtime: RouterRuntime, audit: AuditTrail, now_ms: Callable[[], int] = _now_ms
    ) -> None:
        self._runtime = runtime
        self._audit = audit
        self._core = runtime.core
        self._log = runtime.log
        self._now_ms = now_ms
        self._change_lock = asyncio.Lock()
        self._deletion_lock = asyncio.Lock()

    # Tenants

    def tenant(self, name: str) -> Tenant:
        """Return a tenant, suspended or not. Raises Refused UNKNOWN_TENANT, also during its deletion."""
        tenant = self.known(name)
        if tenant is None or tenant.state == TENANT_STATE_DELETING:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        return tenant

    def known(self, name: str) -> Tenant | None:
        """Return a tenant in any state, or None."""
        return self._core.directory.tenants.get(name)

    def tenants(self, after: str, limit: int) -> list[Tenant]:
        """List tenants in the order of their names, those after `after`."""
        tenants = self._core.directory.tenants
        return [tenants[name] for name in nsmallest(limit, (name for name in tenants if name > after))]

    async def create(self, name: str, settings: TenantSettings) -> Tenant:
        """Create a tenant. Raises Refused TENANT_EXISTS."""

        async def change() -> Tenant:
            if name in self._core.directory.tenants:
                raise catalogue.TENANT_EXISTS.refused(tenant=name)
            return (await self._declare({name: settings}))[0]

        return await self._run(change)

    async def update(self, name: str, settings: TenantSettings, fields: Sequence[str]) -> Tenant:
        """Set these fields of a tenant's settings, or all if none are named. Raises Refused."""

        async def change() -> Tenant:
            present = self.tenant(name).settings
            wanted = TenantSettings()
            wanted.CopyFrom(present if fields else settings)
            if fields:
                set_fields(wanted, settings, fields)
            return (await self._declare({name: restore_secrets(wanted, present)}))[0]

        return await self._run(change)

    async def ensure(self, tenants: Mapping[str, TenantSettings], actor: str) -> None:
        """Create or update tenants to have exactly these settings: all of them or none. Raises Refused.

        `actor` names the declaration in the audit trail.
        """
        ACTOR.set(actor)

        async def change() -> None:
            changed = {
                name: settings
                for name, settings in tenants.items()
                if (known := self.known(name)) is None or known.settings != settings
            }
            await self._declare(changed)

        await self._run(change)

    async def set_state(self, name: str, state: TenantState.ValueType) -> Tenant:
        """Suspend or resume a tenant."""

        async def change() -> Tenant:
            tenant = self.tenant(name)
            return tenant if tenant.state == state else await self._set_state(tenant, state)

        return await self._run(change)

    async def _run(self, change: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a change, which writes to the log and then to the core, even if the caller is cancelled."""
        return await self._runtime.run_to_end(self._change_lock, change)

    async def _declare(self, wanted: Mapping[str, TenantSettings]) -> list[Tenant]:
        """Validate and commit settings of new and known tenants."""
        for name, settings in wanted.items():
            check_settings(settings)
            if settings.encrypt_messages and not self._log.can_encrypt:
                raise catalogue.NO_DATA_KEY.refused(tenant=name)
        self._core.tenant_table.unique_settings.check(wanted)
        now_ms = self._now_ms()
        stored = []
        audit = []
        for name, settings in wanted.items():
            known = self.known(name)
            before, after = changed_settings(known.settings if known else None, settings)
            action = "UpdateTenant" if known else "CreateTenant"
            audit.append(self._audit.record(action, name, tenant=name, before=before, after=after))
            content = settings.SerializeToString(deterministic=True)
            state, created_ms = (
                (known.state, known.created_ms) if known else (int(TENANT_STATE_ACTIVE), now_ms)
            )
            stored.append(StoredTenant(name, state, content, created_ms, now_ms))
        return await self._commit(stored, audit)

    async def _set_state(self, tenant: Tenant, state: TenantState.ValueType) -> Tenant:
        content = tenant.settings.SerializeToString(deterministic=True)
        stored = StoredTenant(tenant.name, state, content, tenant.created_ms, self._now_ms())
        before, after = ({"state": TenantState.Name(each)} for each in (tenant.state, state))  # type: ignore[arg-type]
        record = self._audit.record(
            _STATE_ACTIONS[state], tenant.name, tenant=tenant.name, before=before, after=after
        )
        return (await self._commit([stored], [record]))[0]

    async def _commit(self, stored: list[StoredTenant], audit: list[AuditRecord]) -> list[Tenant]:
        if not stored:
            return []
        await self._log.register(Registration(tenants=stored, audit=audit))
        self._audit.committed(*audit)
        with self._runtime.step() as core:
            tenants = [core.tenant_table.put(each) for each in stored]
            for tenant in tenants:
                if not tenant.is_active:
                    self._runtime.end_streams_of(tenant=tenant.name, reason=tenant.inactive_error())
        states = {
            each.name: TenantState.Name(each.state)  # type: ignore[arg-type]
            for each in tenants[:MAX_LOGGED_TENANTS]
        }
        _log.info("tenants declared", states=states, tenants=len(tenants))
        return tenants

    async def delete(self, name: str) -> int:
        """Disconnect a tenant and erase it. Returns the number of its messages."""

        async def change() -> None:
            # From here on the tenant is disconnected, and an interrupted deletion is continued.
            await self._set_state(self.tenant(name), TENANT_STATE_DELETING)

        await self._run(change)
        return await self.finish_deletion(name)

    async def finish_deletion(self, name: str) -> int:
        """Erase a tenant in state DELETING. Returns the number of messages that were left."""
        messages = 0

        async def erase() -> ErasedPiece:
            # A cancelled deletion may have erased the last piece while this one waited for the log, and the
            # tenant may have been created again.
            if self._is_being_deleted(name):
                return await self._log.erase_tenant(name)
            return ErasedPiece(0)

        def erased(piece: ErasedPiece) -> None:
            nonlocal messages
            messages += piece.messages
            if not self._is_being_deleted(name):
                return
            self._core.tenant_erased(name, piece.topics)
            if piece.cursor is None:
                self._core.api_keys.remove_tenant(name)
                self._core.tenant_table.remove(name)
                _log.info("tenant deleted", tenant=name, messages=messages)

        async with self._deletion_lock:
            if self._is_being_deleted(name):
                await self._runtime.media.erase_tenant(name)
            while self._is_being_deleted(name):
                await self._runtime.write(erase, erased)
        return messages

    def _is_being_deleted(self, name: str) -> bool:
        tenant = self.known(name)
        return tenant is not None and tenant.state == TENANT_STATE_DELETING

    async def erase_user(self, name: str, user: str) -> tuple[int, int]:
        """Erase a user's messages, receipts and uploads. Returns the number of the first two."""
        tenant = self.tenant(name)
        await self._audit.write(self._audit.record("EraseUser", user, tenant=name))
        await self._runtime.media.erase_user(name, user)
        messages = receipts = 0
        cursor: Cursor | None = None

        def erased(piece: ErasedPiece) -> None:
            self._core.user_erased(name, user, piece.topics)
            tenant.messages_erased += piece.messages

        while True:
            piece = await self._runtime.write(partial(self._log.erase_user, name, user, cursor), erased)
            messages += piece.messages
            receipts += piece.receipts
            cursor = piece.cursor
            if cursor is None:
                return messages, receipts

    # API keys

    async def create_key(self, name: str, title: str, scopes: Iterable[int]) -> tuple[StoredApiKey, str]:
        """Create an API key. Returns it with its secret."""

        async def change() -> tuple[StoredApiKey, str]:
            self.tenant(name)
            keys = self._core.api_keys
            key, secret = keys.create(name, title, scopes, self._now_ms(), os.urandom)
            after = {"name": title, "scopes": [Scope.Name(scope) for scope in key.scopes]}  # type: ignore[arg-type]
            record = self._audit.record("CreateApiKey", key.key_id, tenant=name, after=after)
            await self._log.register(Registration(api_keys=[key], audit=[record]))
            keys.add(key)
            self._audit.committed(record)
            return key, secret

        return await self._run(change)

    def keys(self, name: str) -> list[StoredApiKey]:
        """List a tenant's API keys."""
        self.tenant(name)
        return self._core.api_keys.of_tenant(name)

    async def revoke_key(self, name: str, key_id: str) -> None:
        """Revoke an API key and end the streams opened with it. Raises Refused API_KEY_NOT_FOUND."""

        async def change() -> None:
            self.tenant(name)
            keys = self._core.api_keys
            key = next((key for key in keys.of_tenant(name) if key.key_id == key_id), None)
            if key is None:
                raise catalogue.API_KEY_NOT_FOUND.refused(key_id=key_id)
            before = {"name": key.name, "scopes": [Scope.Name(scope) for scope in key.scopes]}  # type: ignore[arg-type]
            record = self._audit.record("RevokeApiKey", key_id, tenant=name, before=before)
            await self._log.register(Registration(keys_gone=[key_id], audit=[record]))
            keys.remove(name, key_id)
            self._audit.committed(record)
            reason = catalogue.UNAUTHORIZED.refused(problem="the API key was revoked")
            self._runtime.end_streams_of(key_id=key_id, reason=reason)

        await self._run(change)

    # Tokens

    async def revoke_tokens(
        self, name: str, kind: RevocationKind, subject: str, issued_before_ms: int | None
    ) -> int:
        """Revoke tokens of a user, one token by its id, or all. Returns the number of connections ended.

        `issued_before_ms` limits the revocation to older tokens; None stands for now. Raises Refused.
        """

        async def change() -> int:
            tenant = self.tenant(name)
            tenant.revocations.check_room()
            now_ms = self._now_ms()
            before_ms = now_ms if issued_before_ms is None else issued_before_ms
            if before_ms > now_ms + CLOCK_SKEW_MS:
                problem = "must not be in the future: it would revoke tokens that are not issued yet"
                raise catalogue.INVALID_ARGUMENT.refused(field="issued_before", problem=problem)
            if kind is RevocationKind.TOKEN_ID:
                before_ms = 0
            revocation = StoredRevocation(name, kind, subject, before_ms, now_ms)
            after: dict[str, object] = {"all": True} if not subject else {kind.name.lower(): subject}
            after |= {"issued_before_ms": before_ms, "revoked_ms": now_ms}
            record = self._audit.record("RevokeTokens", subject or "all", tenant=name, after=after)
            await self._log.register(Registration(revocations=[revocation], audit=[record]))
            self._audit.committed(record)
            with self._runtime.step() as core:
                return core.tenant_table.revoke(revocation)

        return await self._run(change)
