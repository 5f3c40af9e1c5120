"""Tenants, API keys and revocations in memory, as the log interface requires."""

from __future__ import annotations

from itertools import accumulate

from trunkline_router.core.values.stored_records import (
    REFUSED,
    AuditQuery,
    AuditRecord,
    Registered,
    Registration,
    RevocationKind,
    StoredApiKey,
    StoredRevocation,
    StoredTenant,
)


class MemoryRegistry:
    """Synchronous registry; its contents count as durable."""

    def __init__(self) -> None:
        #: With their ids.
        self.audited: list[tuple[int, AuditRecord]] = []
        self._tenants: dict[str, StoredTenant] = {}
        self._api_keys: dict[str, StoredApiKey] = {}
        self._revocations: dict[tuple[str, RevocationKind, str], StoredRevocation] = {}

    def registered(self) -> Registered:
        """Return everything stored."""
        return Registered(
            sorted(self._tenants.values()),
            sorted(self._api_keys.values()),
            sorted(self._revocations.values()),
        )

    def register(self, change: Registration) -> None:
        """Commit a change."""
        self._tenants.update({each.tenant: each for each in change.tenants})
        self._api_keys.update({each.key_id: each for each in change.api_keys})
        self._revocations.update({each[:3]: each for each in change.revocations})
        for key_id in change.keys_gone:
            self._api_keys.pop(key_id, None)
        for key_id, used_ms in change.keys_used:
            if key := self._api_keys.get(key_id):
                self._api_keys[key_id] = key._replace(used_ms=used_ms)
        self._revocations = {
            name: each
            for name, each in self._revocations.items()
            if each.revoked_ms >= change.revoked_before_ms
        }

        for record in change.audit:
            self.audited.append((len(self.audited) + 1, record))
        self.audited = [row for row in self.audited if row[1].at_ms >= change.audited_before_ms]

    def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """Return audit records, newest first."""
        actions = (query.action, query.action + REFUSED)
        found = [
            (number, record)
            for number, record in reversed(self.audited)
            if record.at_ms >= query.since_ms
            and query.tenant in ("", record.tenant)
            and (not query.action or record.action in actions)
            and (not query.before_id or number < query.before_id)
        ]
        sizes = accumulate((record.size for _, record in found), initial=0)
        return [row for row, size in zip(found, sizes, strict=False) if size < query.max_chars][: query.limit]

    def unregister(self, tenant: str) -> None:
        """Remove everything that belongs to a tenant."""
        self._tenants.pop(tenant, None)
        self._api_keys = {k: each for k, each in self._api_keys.items() if each.tenant != tenant}
        self._revocations = {k: each for k, each in self._revocations.items() if each.tenant != tenant}
