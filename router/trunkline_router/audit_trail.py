"""Records of administrative acts: one row in the log and one log line each, without secrets.

A change that the log stores is committed together with its record; other acts are recorded before they
happen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_runtime.jwk import without_secret
from trunkline_runtime.redacted_url import redacted_url

from trunkline_router.active_call import ACTIVE_CALL, ActiveCall
from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.tenants.revocations import RETENTION_MS as RETENTION_MS
from trunkline_router.core.values.stored_records import REFUSED, AuditRecord, Registration
from trunkline_router.log.interface import Log

_log = structlog.get_logger()

#: Refused attempts that differ in caller, address, RPC or error and are recorded within one interval.
#: Repeats, and what is beyond, are counted in the next record.
MAX_REFUSALS = 100
REFUSAL_INTERVAL_S = 60.0

#: Actor of changes that no call makes, such as `tenants-file`.
ACTOR: ContextVar[str] = ContextVar("actor", default="router")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class AuditTrail:
    """Makes and writes the records of one router."""

    def __init__(
        self,
        log: Log,
        now_ms: Callable[[], int] = _now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._now_ms = now_ms
        self._monotonic = monotonic
        #: Refused attempts to be written, at most MAX_REFUSALS.
        self._refusals: list[AuditRecord] = []
        self._seen: set[tuple[str, ...]] = set()
        self._seen_until = 0.0
        #: Attempts that were not recorded since the last one that was.
        self._suppressed = 0

    def record(
        self,
        action: str,
        target: str,
        *,
        tenant: str,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
    ) -> AuditRecord:
        """Make the record of an act of the current call, to be committed with it; then call `committed`."""
        call = ACTIVE_CALL.get(None)
        actor, source = (ACTOR.get(), "") if call is None else (actor_of(call.caller), call.source)
        return AuditRecord(self._now_ms(), tenant, actor, source, action, target, _json(before), _json(after))

    def committed(self, *records: AuditRecord) -> None:
        """Write the log lines of records that the log has committed."""
        if records and (call := ACTIVE_CALL.get(None)) is not None:
            call.is_recorded = True
        for each in records:
            fields = {name: value for name, value in each._asdict().items() if value and name != "at_ms"}
            _log.info("audit", **fields)

    async def write(self, record: AuditRecord) -> None:
        """Commit the record of an act that the log does not store, before the act. Raises LogUnavailable."""
        await self._log.register(Registration(audit=[record]))
        self.committed(record)

    # Refused attempts

    def refused(self, call: ActiveCall, rpc: str, tenant: str, reason: Refused) -> None:
        """Note a refused attempt; `write_refusals` records it. `tenant` is the one that it named, if known.

        An attempt with a tenant's own key is that tenant's, whatever it named.
        """
        actor, code = actor_of(call.caller), reason.entry.code
        # Without the address that a caller names for another, because it may name any number.
        key = (actor, call.source.partition(" for ")[0], rpc, code)
        now = self._monotonic()
        if now >= self._seen_until:
            self._seen.clear()
            self._seen_until = now + REFUSAL_INTERVAL_S
        if key in self._seen or len(self._seen) >= MAX_REFUSALS:
            self._suppressed += 1
            return
        self._seen.add(key)
        after: dict[str, object] = {"error": code}
        if self._suppressed:
            after["suppressed"], self._suppressed = self._suppressed, 0
        owner = call.caller.tenant or tenant
        self._refusals.append(
            AuditRecord(self._now_ms(), owner, actor, call.source, rpc + REFUSED, tenant, after=_json(after))
        )
        del self._refusals[:-MAX_REFUSALS]

    async def write_refusals(self) -> None:
        """Commit the refused attempts noted so far. Raises LogUnavailable; they are then kept for later."""
        if not self._refusals:
            return
        written = list(self._refusals)
        await self._log.register(Registration(audit=written))
        del self._refusals[: len(written)]
        self.committed(*written)

    async def expire(self) -> None:
        """Delete some of the records that are older than RETENTION_MS. Raises LogUnavailable."""
        await self._log.register(Registration(audited_before_ms=self._now_ms() - RETENTION_MS))


def actor_of(caller: Caller) -> str:
    """Return a caller as records name it."""
    if caller.kind is CallerKind.KEY:
        return f"key:{caller.key_id}"
    client = caller.token_client
    if client is not None:
        return f"client:{client.user}"
    if caller.kind is CallerKind.EDGE:
        return "client" if caller.tenant else "edge"
    if caller.kind is CallerKind.OPERATOR:
        return "operator"
    return "loopback" if caller.is_local else "anonymous"


def changed_settings(
    before: TenantSettings | None, after: TenantSettings
) -> tuple[dict[str, object] | None, dict[str, object]]:
    """Return the fields of a tenant's settings that differ, before and after, without secrets."""
    then, now = before or TenantSettings(), after
    fields = [
        field.name
        for field in TenantSettings.DESCRIPTOR.fields
        if _only(then, field.name) != _only(now, field.name)
    ]
    old, new = _redacted(then), _redacted(now)
    old_values = {name: old[name] for name in fields if name in old}
    new_values = {name: new[name] for name in fields if name in new}
    if "client_auth" in fields and old.get("client_auth") == new.get("client_auth"):
        new_values["secrets"] = "changed"
    return (None if before is None else old_values), new_values


def _only(settings: TenantSettings, field: str) -> bytes:
    """Return one field, serialized."""
    kept = TenantSettings()
    kept.CopyFrom(settings)
    for other in TenantSettings.DESCRIPTOR.fields:
        if other.name != field:
            kept.ClearField(other.name)  # type: ignore[arg-type]
    return kept.SerializeToString(deterministic=True)


def _redacted(settings: TenantSettings) -> dict[str, Any]:
    public = TenantSettings()
    public.CopyFrom(settings)
    for key in public.client_auth.keys:
        key.jwk = without_secret(key.jwk)
    public.client_auth.jwks_url = redacted_url(public.client_auth.jwks_url)
    secrets = len(public.client_auth.token_digests)
    public.client_auth.ClearField("token_digests")
    found: dict[str, Any] = MessageToDict(public, preserving_proto_field_name=True)
    if secrets:
        found.setdefault("client_auth", {})["token_digests"] = secrets
    if not settings.HasField("client_auth"):
        found.pop("client_auth", None)
    return found


def _json(values: Mapping[str, object] | None) -> str:
    if not values:
        return ""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
