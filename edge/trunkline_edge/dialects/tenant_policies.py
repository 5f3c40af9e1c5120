"""What an edge is told of tenants by its router."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline_runtime.tenant_policy import is_open


class TenantPolicies:
    """The policies of all tenants.

    They are told anew on each link: `begin`, `told` for each, then `all_told`. Until that has happened once,
    `are_known` is false and nothing can be said of any tenant; afterwards what was told stays while there
    is no link.
    """

    def __init__(self, policies: Iterable[TenantPolicy] = ()) -> None:
        self.are_known = False
        self._policies: dict[str, TenantPolicy] = {}
        self._pipelines: dict[str, str] = {}
        #: Tenants by the digests of the secrets that their clients share.
        self._digests: dict[str, str] = {}
        self._told: set[str] | None = None
        for policy in policies:
            self.told(policy)
            self.are_known = True

    # What the router tells

    def begin(self) -> None:
        """On a new link all policies come again."""
        self._told = set()

    def told(self, policy: TenantPolicy) -> None:
        """A tenant is new, or has changed."""
        name = policy.tenant
        self._forget(name)
        if self._told is not None:
            self._told.add(name)
        self._policies[name] = policy
        self._pipelines.update((pipeline, name) for pipeline in policy.settings.pipelines)
        self._digests.update((digest, name) for digest in policy.settings.client_auth.token_digests)

    def gone(self, name: str) -> None:
        """A tenant is no more."""
        self._forget(name)

    def all_told(self) -> list[str]:
        """All there are were told. Returns those that are no more."""
        gone = [name for name in self._policies if self._told is not None and name not in self._told]
        for name in gone:
            self._forget(name)
        self._told = None
        self.are_known = True
        return gone

    def _forget(self, name: str) -> None:
        policy = self._policies.pop(name, None)
        if policy is None:
            return
        for owners, names in (
            (self._pipelines, policy.settings.pipelines),
            (self._digests, policy.settings.client_auth.token_digests),
        ):
            for each in names:
                if owners.get(each) == name:
                    del owners[each]

    # What dialects and others ask

    def policy(self, name: str) -> TenantPolicy | None:
        """One tenant's, if there is such a tenant."""
        return self._policies.get(name)

    def of_pipeline(self, pipeline: str) -> str:
        """The tenant that a pipeline was declared for; empty for none."""
        return self._pipelines.get(pipeline, "")

    def of_token(self, token: str) -> str:
        """The tenant whose clients share this secret; empty for none."""
        # Whoever learns how long a look-up takes learns of the digest, not of the secret.
        return self._digests.get(digest_of(token), "") if token else ""

    def agent_of(self, name: str) -> str:
        """The agent of clients that name none; empty where none was declared."""
        policy = self._policies.get(name)
        return policy.settings.default_agent if policy else ""

    @property
    def have_tokens(self) -> bool:
        """There is a secret that belongs to a tenant."""
        return bool(self._digests)

    def is_open(self, name: str, is_local: bool) -> bool:
        """Whether somebody who shows no proof may come in; `is_local` is from the edge's own machine.

        False for a tenant that there is not.
        """
        policy = self._policies.get(name)
        return policy is not None and is_open(policy.settings.open_to, is_local)

    def may_be_token(self, name: str, token: str) -> bool:
        """Whether a token is one of the tenant's as far as can be seen: its secret, or a JSON Web Token."""
        return self.of_token(token) == name or token.count(".") == 2

    def takes_tokens(self, name: str) -> bool:
        """Whether the tenant has anything that a token could be verified with."""
        policy = self._policies.get(name)
        if policy is None:
            return False
        auth = policy.settings.client_auth
        return bool(auth.keys or auth.jwks_url or auth.token_digests)


def digest_of(token: str) -> str:
    """What is kept of a secret that clients share."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
