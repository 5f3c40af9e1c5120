"""What an edge is told of tenants: what their clients leave out, and what must be proved."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from trunkline.v1 import catalogue


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """One tenant's."""

    #: The agent of clients whose protocol knows no agents.
    agent: str = ""
    #: Ids of LangBot pipelines: agents of this tenant, whose clients do not name the tenant.
    pipelines: frozenset[str] = frozenset()
    #: Where there are any, clients and HTTP requests need one of them.
    tokens: frozenset[str] = frozenset()


class Tenants:
    """The policies of all tenants. A tenant without one is open, to those whom its router lets in."""

    def __init__(self, policies: Mapping[str, TenantPolicy] | None = None) -> None:
        """Raises ValueError where two tenants claim the same pipeline or token."""
        self._policies = dict(policies or {})
        self._pipelines: dict[str, str] = {}
        tokens: dict[str, str] = {}
        for tenant, policy in self._policies.items():
            for owners, names, what in (
                (self._pipelines, policy.pipelines, "pipeline"),
                (tokens, policy.tokens, "token"),
            ):
                for name in names:
                    if owners.setdefault(name, tenant) != tenant:
                        # A token is not shown.
                        named = f" {name}" if what == "pipeline" else ""
                        raise ValueError(
                            f"{what}{named} is given to two tenants, {owners[name]} and {tenant}"
                        )

    def of_pipeline(self, pipeline: str) -> str:
        """The tenant that a pipeline was declared for; empty for none."""
        return self._pipelines.get(pipeline, "")

    def of_token(self, token: str) -> str:
        """The tenant that a token belongs to; empty for none."""
        found = ""
        for tenant, policy in self._policies.items():
            if _is_one_of(token, policy.tokens):
                found = tenant
        return found

    def agent_of(self, tenant: str) -> str:
        """The agent of clients that name none; empty where none was declared."""
        return self._policies.get(tenant, TenantPolicy()).agent

    @property
    def has_tokens(self) -> bool:
        """There is a token that belongs to a tenant."""
        return any(policy.tokens for policy in self._policies.values())

    def needs_token(self, tenant: str) -> bool:
        """The tenant is not open."""
        return bool(self._policies.get(tenant, TenantPolicy()).tokens)

    def admit(self, tenant: str, token: str) -> None:
        """Raises Refused UNAUTHORIZED where the tenant is not open and the token is not one of its own."""
        if not self.needs_token(tenant):
            return
        if not token:
            raise catalogue.UNAUTHORIZED.refused(problem="a token must be given")
        if not _is_one_of(token, self._policies[tenant].tokens):
            raise catalogue.UNAUTHORIZED.refused(problem="the token is not one of this tenant's")


def _is_one_of(token: str, tokens: frozenset[str]) -> bool:
    """Takes as long whichever it is, and however much of it is right."""
    given = token.encode(errors="surrogatepass")
    matches = [hmac.compare_digest(given, known.encode()) for known in tokens]
    return bool(token) and any(matches)
