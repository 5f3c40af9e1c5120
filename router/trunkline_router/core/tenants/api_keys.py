"""Who calls, and what they may do: the operator, API keys of tenants, edges, and everybody else."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_BROADCAST, SCOPE_LINK, SCOPE_OPERATOR
from trunkline_runtime.loopback import is_loopback
from trunkline_runtime.tenant_policy import check_open_to_call, scope_name

from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.log_records import StoredApiKey

#: API keys of one tenant.
MAX_KEYS = 1000

#: A longer secret is none of ours, and is not looked at.
MAX_SECRET_CHARS = 256

#: How often it is noted that a key was used.
USED_EVERY_MS = 60_000

_PREFIX = "tl_"
#: Compared with what is shown for a key that there is not, so that it takes as long; no secret has it.
_NO_DIGEST = bytes(32)


class CallerKind(Enum):
    """What a caller has proved to be."""

    #: Holds the operator's key.
    OPERATOR = "operator"
    #: Holds an API key.
    KEY = "key"
    #: Holds the proof that links need.
    EDGE = "edge"
    #: Nothing.
    ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    kind: CallerKind
    #: The tenant whose key it is, or that an edge acts for; of others empty.
    tenant: str = ""
    #: What that gives.
    scopes: frozenset[int] = frozenset()
    key_id: str = ""
    #: It is on this machine, or on the machine of the edge that passes the call on.
    is_local: bool = False

    def check(self, scope: int, name: str, tenant: Tenant | None) -> None:
        """Raises Refused where the caller may not do what takes this scope, for the tenant of this name.

        UNAUTHORIZED asks for a proof, FORBIDDEN says that the one shown does not reach so far; neither
        says to a caller with a proof whether there is a tenant that is not its own. `tenant` is the one
        of this name, None where there is none: callers without a proof, and the operator, are let pass
        then, to be told so. RPCs that name no tenant say "".
        """
        if scope == SCOPE_LINK:
            self._check_edge()
        elif not SCOPE_BROADCAST <= scope <= SCOPE_OPERATOR:
            raise catalogue.FORBIDDEN.refused(problem="nobody may do this")
        elif self.kind is CallerKind.OPERATOR:
            return
        elif self.tenant:
            self._check_own(scope, name)
        else:
            self._check_open(scope, tenant)

    def _check_edge(self) -> None:
        if self.kind is CallerKind.ANYBODY:
            raise catalogue.UNAUTHORIZED.refused(problem="an edge must prove that it is one")
        if self.kind is not CallerKind.EDGE:
            raise catalogue.FORBIDDEN.refused(problem="only edges link")

    def _check_own(self, scope: int, name: str) -> None:
        if scope == SCOPE_OPERATOR:
            raise catalogue.FORBIDDEN.refused(problem="this takes the operator's key")
        proof = "the API key" if self.kind is CallerKind.KEY else "the client's token"
        if name != self.tenant:
            raise catalogue.FORBIDDEN.refused(problem=f"{proof} is not one of this tenant's")
        if scope not in self.scopes:
            raise catalogue.FORBIDDEN.refused(problem=f"{proof} does not give {scope_name(scope)}")

    def _check_open(self, scope: int, tenant: Tenant | None) -> None:
        if scope == SCOPE_OPERATOR:
            raise catalogue.UNAUTHORIZED.refused(problem="the operator's key must be given")
        if tenant is None:
            return
        check_open_to_call(tenant.name, tenant.settings.open_to, scope, self.is_local)


def is_local(peer: str, remote: Iterable[str], *, is_forwarded: bool, is_edge: bool) -> bool:
    """Whether a caller is on this machine, or on the edge's.

    `peer` is the address that the call comes from, `remote` what the call says of whom it is made for:
    from an edge that has proved to be one that counts, from anybody else it can only take away.
    """
    remote = list(remote)
    if is_forwarded or not all(is_loopback(each) for each in remote):
        return False
    return is_loopback(peer) or (is_edge and bool(remote))


class _StoredKey:
    """A key as it is kept in memory."""

    __slots__ = ("caller", "noted_ms", "stored")

    def __init__(self, stored: StoredApiKey) -> None:
        self.stored = stored
        self.caller = Caller(CallerKind.KEY, stored.tenant, frozenset(stored.scopes), stored.key_id)
        #: When it was noted last that it was used.
        self.noted_ms = stored.used_ms


class ApiKeys:
    """All API keys. What is here is on disk already; at most MAX_KEYS of one tenant are made."""

    def __init__(self) -> None:
        self._keys: dict[str, _StoredKey] = {}
        self._of_tenant: dict[str, dict[str, _StoredKey]] = {}
        #: By key, what is to be written of its last use.
        self._used: dict[str, int] = {}

    def __contains__(self, key_id: str) -> bool:
        """Whether there is a key of this id, still."""
        return key_id in self._keys

    def load(self, stored: Iterable[StoredApiKey]) -> None:
        """What the log holds; before any caller is let in."""
        for each in stored:
            self.add(each)

    def make(
        self, tenant: str, name: str, scopes: Iterable[int], now_ms: int, random: Callable[[int], bytes]
    ) -> tuple[StoredApiKey, str]:
        """A new key, and its secret, which is nowhere else; to be stored, and then to be added.

        `random` gives so many bytes that nobody can guess. Raises Refused where the tenant has MAX_KEYS.
        """
        if len(self._of_tenant.get(tenant, ())) >= MAX_KEYS:
            problem = f"a tenant may have {MAX_KEYS} API keys; revoke one first"
            raise catalogue.FORBIDDEN.refused(problem=problem)
        key_id = random(8).hex()
        secret = f"{_PREFIX}{key_id}_{random(32).hex()}"
        ordered = tuple(sorted(set(scopes)))
        return StoredApiKey(key_id, tenant, name, _digest(secret), ordered, now_ms), secret

    def add(self, stored: StoredApiKey) -> None:
        """A key is on disk: from now on it is good."""
        key = self._keys[stored.key_id] = _StoredKey(stored)
        self._of_tenant.setdefault(stored.tenant, {})[stored.key_id] = key

    def remove(self, tenant: str, key_id: str) -> StoredApiKey | None:
        """Forget a key; None where the tenant has none of this id. Its streams are to be ended."""
        keys = self._of_tenant.get(tenant, {})
        key = keys.pop(key_id, None)
        if key is None:
            return None
        if not keys:
            del self._of_tenant[tenant]
        del self._keys[key_id]
        self._used.pop(key_id, None)
        return key.stored

    def of(self, tenant: str) -> list[StoredApiKey]:
        """A tenant's keys, oldest first."""
        stored = [key.stored for key in self._of_tenant.get(tenant, {}).values()]
        return sorted(stored, key=lambda each: (each.created_ms, each.key_id))

    def forget_tenant(self, tenant: str) -> None:
        """A tenant is no more. Its streams are to be ended."""
        for stored in self.of(tenant):
            self.remove(tenant, stored.key_id)

    def caller(self, secret: str, now_ms: int) -> Caller | None:
        """Whose secret this is; None where it is nobody's.

        How long that takes says nothing of how much of a secret was right, or whether its key is there.
        """
        if len(secret) > MAX_SECRET_CHARS or not secret.startswith(_PREFIX) or not secret.isascii():
            return None
        key = self._keys.get(secret[len(_PREFIX) :].partition("_")[0])
        expected = key.stored.digest if key is not None else _NO_DIGEST
        if not hmac.compare_digest(_digest(secret), expected) or key is None:
            return None
        if not 0 <= now_ms - key.noted_ms < USED_EVERY_MS:
            key.noted_ms = now_ms
            key.stored = key.stored._replace(used_ms=now_ms)
            self._used[key.stored.key_id] = now_ms
        return key.caller

    def take_used(self) -> list[tuple[str, int]]:
        """Keys that were used since this was asked last, and when, to be written; each once a minute."""
        used, self._used = self._used, {}
        return list(used.items())

    def __repr__(self) -> str:
        return f"<ApiKeys {len(self._keys)} of {len(self._of_tenant)} tenants>"


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
