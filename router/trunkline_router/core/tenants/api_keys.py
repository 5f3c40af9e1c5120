"""API keys of all tenants."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256

from trunkline.v1 import catalogue

from trunkline_router.core.tenants.callers import Caller, CallerKind
from trunkline_router.core.values.stored_records import StoredApiKey

#: Bound of one tenant's API keys.
MAX_KEYS = 1000

#: Longer secrets are rejected unread.
MAX_SECRET_CHARS = 256

#: Resolution of a key's time of last use, which is written to the log.
LAST_USE_RESOLUTION_MS = 60_000

_PREFIX = "tl_"
#: Stands in for the digest of an unknown key, so that its rejection takes as long; no secret has it.
_NO_DIGEST = bytes(32)


class _KnownKey:
    """An API key in memory."""

    __slots__ = ("caller", "noted_ms", "stored")

    def __init__(self, stored: StoredApiKey) -> None:
        self.stored = stored
        self.caller = Caller(CallerKind.KEY, stored.tenant, frozenset(stored.scopes), stored.key_id)
        #: Last use that was noted for the log.
        self.noted_ms = stored.used_ms


class ApiKeys:
    """Committed API keys of all tenants, at most MAX_KEYS of each."""

    def __init__(self) -> None:
        self._keys: dict[str, _KnownKey] = {}
        self._by_tenant: dict[str, dict[str, _KnownKey]] = {}
        #: Times of last use to write, by key id.
        self._last_used: dict[str, int] = {}

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def load(self, stored: Iterable[StoredApiKey]) -> None:
        """Add the keys in the log; called before the first caller is admitted."""
        for each in stored:
            self.add(each)

    def create(
        self, tenant: str, name: str, scopes: Iterable[int], now_ms: int, random: Callable[[int], bytes]
    ) -> tuple[StoredApiKey, str]:
        """Create a key and its secret, which is stored nowhere. Commit the key, then call `add`.

        `random` returns this many unpredictable bytes. Raises Refused FORBIDDEN if the tenant has MAX_KEYS.
        """
        if len(self._by_tenant.get(tenant, ())) >= MAX_KEYS:
            problem = f"a tenant may have {MAX_KEYS} API keys; revoke one first"
            raise catalogue.FORBIDDEN.refused(problem=problem)
        key_id = random(8).hex()
        secret = f"{_PREFIX}{key_id}_{random(32).hex()}"
        ordered = tuple(sorted(set(scopes)))
        return StoredApiKey(key_id, tenant, name, _digest(secret), ordered, now_ms), secret

    def add(self, stored: StoredApiKey) -> None:
        """Add a committed key; callers may use it from now on."""
        key = self._keys[stored.key_id] = _KnownKey(stored)
        self._by_tenant.setdefault(stored.tenant, {})[stored.key_id] = key

    def remove(self, tenant: str, key_id: str) -> StoredApiKey | None:
        """Remove a key; None if the tenant has no such key. The caller then ends the key's streams."""
        keys = self._by_tenant.get(tenant, {})
        key = keys.pop(key_id, None)
        if key is None:
            return None
        if not keys:
            del self._by_tenant[tenant]
        del self._keys[key_id]
        self._last_used.pop(key_id, None)
        return key.stored

    def of_tenant(self, tenant: str) -> list[StoredApiKey]:
        """Return a tenant's keys, oldest first."""
        stored = [key.stored for key in self._by_tenant.get(tenant, {}).values()]
        return sorted(stored, key=lambda each: (each.created_ms, each.key_id))

    def remove_tenant(self, tenant: str) -> None:
        """Remove all keys of a deleted tenant. The caller then ends their streams."""
        for stored in self.of_tenant(tenant):
            self.remove(tenant, stored.key_id)

    def authenticate(self, secret: str, now_ms: int) -> Caller | None:
        """Return the caller with this secret; None if no key has it.

        The time that this takes reveals neither whether a key exists nor how much of its secret matches.
        """
        if len(secret) > MAX_SECRET_CHARS or not secret.startswith(_PREFIX) or not secret.isascii():
            return None
        key = self._keys.get(secret[len(_PREFIX) :].partition("_")[0])
        expected = key.stored.digest if key is not None else _NO_DIGEST
        if not hmac.compare_digest(_digest(secret), expected) or key is None:
            return None
        if not 0 <= now_ms - key.noted_ms < LAST_USE_RESOLUTION_MS:
            key.noted_ms = now_ms
            key.stored = key.stored._replace(used_ms=now_ms)
            self._last_used[key.stored.key_id] = now_ms
        return key.caller

    def take_last_used(self) -> list[tuple[str, int]]:
        """Return and forget ids and times of keys used since the last call, to be written to the log."""
        used, self._last_used = self._last_used, {}
        return list(used.items())

    def restore_last_used(self, used: Iterable[tuple[str, int]]) -> None:
        """Take back what `take_last_used` returned and the log did not commit; later uses prevail."""
        for key_id, used_ms in used:
            if key_id in self._keys:
                self._last_used.setdefault(key_id, used_ms)

    def __repr__(self) -> str:
        return f"<ApiKeys {len(self._keys)} of {len(self._by_tenant)} tenants>"


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
