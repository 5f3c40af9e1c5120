"""Policies of tenants, as the router sends them to an edge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK
from trunkline_runtime.jose import from_base64url, is_jwt, read_object
from trunkline_runtime.reserved_names import ReservedName, reserved_names
from trunkline_runtime.tenant_policy import is_open

K = TypeVar("K")

#: A longer token is not valid, so its audience is not read.
_MAX_TOKEN_CHARACTERS = 16384


class TenantPolicies:
    """The policies of all tenants, indexed by what clients send in place of a tenant.

    Each link sends them all again: `begin_sync`, `put` for each, `end_sync`. Until the first sync has ended
    `are_known` is false and an absent tenant may exist. Without a link the last known policies stay.
    """

    def __init__(self, policies: Iterable[TenantPolicy] = ()) -> None:
        self.are_known = False
        self._policies: dict[str, TenantPolicy] = {}
        self._owners: dict[ReservedName, str] = {}
        #: Tenants by the digests of the secrets that their clients share.
        self._digests: dict[str, str] = {}
        #: Tenants that accept tokens for an audience.
        self._by_audience: dict[str, set[str]] = {}
        self._synced: set[str] | None = None
        for policy in policies:
            self.put(policy)
            self.are_known = True

    # Updates from the router

    def begin_sync(self) -> None:
        """A new link sends all policies again."""
        self._synced = set()

    def put(self, policy: TenantPolicy) -> None:
        """Add a tenant, or replace its policy."""
        name = policy.tenant
        before = self._policies.get(name)
        self.remove(name)
        if self._synced is not None:
            self._synced.add(name)
            if before is not None:
                # The workers of a router that has restarted are still to attach again.
                policy.agents.extend(set(before.agents) - set(policy.agents))
        self._policies[name] = policy
        self._owners.update(dict.fromkeys(reserved_names(policy.settings), name))
        self._digests.update(dict.fromkeys(policy.settings.client_auth.token_digests, name))
        for audience in policy.settings.client_auth.audiences:
            self._by_audience.setdefault(audience, set()).add(name)

    def remove(self, name: str) -> None:
        """Remove a tenant, if present."""
        policy = self._policies.pop(name, None)
        if policy is not None:
            _disown(self._owners, reserved_names(policy.settings), name)
            _disown(self._digests, policy.settings.client_auth.token_digests, name)
            for audience in policy.settings.client_auth.audiences:
                tenants = self._by_audience.get(audience, set())
                tenants.discard(name)
                if not tenants:
                    self._by_audience.pop(audience, None)

    def end_sync(self) -> list[str]:
        """All policies were sent. Removes the tenants that were not among them, and returns their names."""
        removed = [name for name in self._policies if self._synced is not None and name not in self._synced]
        for name in removed:
            self.remove(name)
        self._synced = None
        self.are_known = True
        return removed

    # Queries

    def policy(self, name: str) -> TenantPolicy | None:
        """The policy of a tenant; None if there is no such tenant."""
        return self._policies.get(name)

    def owner_of(self, dialect: str, name: str) -> str:
        """The tenant that reserved a name for a dialect; empty for none."""
        return self._owners.get(ReservedName(dialect, name), "")

    def owners_for(self, dialect: str) -> list[TenantPolicy]:
        """The policies of the tenants with names reserved for a dialect."""
        owners = {owner for reserved, owner in self._owners.items() if reserved.dialect == dialect}
        return [policy for owner in owners if (policy := self._policies.get(owner)) is not None]

    def tenant_of_token(self, token: str) -> str:
        """The tenant whose clients share this secret; empty for none."""
        # The time of a lookup leaks something about the digest, not about the secret.
        return self._digests.get(digest_of(token), "") if token else ""

    def tenant_of_audience(self, token: str) -> str:
        """The only tenant that accepts tokens for this one's audience; empty for none or several.

        The token is not verified, so nothing follows from the result but the tenant to verify it for.
        """
        tenants = {name for audience in _audiences_of(token) for name in self._by_audience.get(audience, ())}
        return tenants.pop() if len(tenants) == 1 else ""

    def default_agent(self, name: str) -> str:
        """The agent of a tenant's clients that name none; empty if none is set."""
        policy = self._policies.get(name)
        return policy.settings.default_agent if policy else ""

    def are_known_by(self, dialect: str) -> bool:
        """Whether a token may identify a tenant, by its secret or audience, or a name of a dialect may."""
        return bool(self._digests or self._by_audience) or any(
            each.dialect == dialect for each in self._owners
        )

    def is_open(self, name: str, is_local: bool) -> bool:
        """Whether callers without credentials are admitted; `is_local` if they are on the edge's machine.

        False for an unknown tenant.
        """
        policy = self._policies.get(name)
        return policy is not None and is_open(policy.settings.open_to, is_local)

    def open_to_loopback(self) -> list[str]:
        """The names of the tenants that are open to callers on this machine only."""
        policies = self._policies.values()
        return sorted(each.tenant for each in policies if each.settings.open_to == OPENNESS_LOOPBACK)

    def may_accept(self, name: str, token: str) -> bool:
        """Whether a token could be the tenant's: its shared secret, or any JSON Web Token."""
        return self.tenant_of_token(token) == name or token.count(".") == 2

    def can_verify_tokens(self, name: str) -> bool:
        """Whether the tenant has keys or secrets to verify tokens with."""
        policy = self._policies.get(name)
        if policy is None:
            return False
        auth = policy.settings.client_auth
        return bool(auth.keys or auth.jwks_url or auth.token_digests)


def _disown(owners: dict[K, str], values: Iterable[K], name: str) -> None:
    """Delete the values that still belong to the tenant; one may have passed to another tenant."""
    for value in values:
        if owners.get(value) == name:
            del owners[value]


def _audiences_of(token: str) -> list[str]:
    """The audiences that a JSON Web Token states; empty for any other text."""
    if len(token) > _MAX_TOKEN_CHARACTERS or not is_jwt(token):
        return []
    try:
        stated = read_object(from_base64url(token.split(".")[1])).get("aud")
    except ValueError:
        return []
    audiences = stated if isinstance(stated, list) else [stated]
    return [each for each in audiences if isinstance(each, str)]


def digest_of(token: str) -> str:
    """SHA-256 of a shared secret, in hex: the only form in which the secret is stored."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
