"""May this client connect, and as whom?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE
from trunkline_runtime.loopback import is_loopback
from trunkline_runtime.tenant_policy import inactive

from trunkline_edge.auth.claims import is_id
from trunkline_edge.auth.jwks import JwksCache
from trunkline_edge.auth.key_set import inline
from trunkline_edge.auth.principal import RIGHTS, Principal
from trunkline_edge.auth.tokens import UnknownKey, verify
from trunkline_edge.core.rate_limits import TenantRateLimiter
from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of


@dataclass(frozen=True, slots=True)
class ConnectAttempt:
    """Who wants to connect, as far as the request tells."""

    #: What proves who that is; empty for nothing.
    token: str
    #: The web page's, if it is one.
    origin: str
    #: From the edge's own machine, and not through a proxy.
    is_local: bool


class TenantAuth:
    """What the edge knows of one tenant beside its policy."""

    __slots__ = ("keys", "pace", "policy")

    def __init__(self, policy: TenantPolicy) -> None:
        self.pace = TenantRateLimiter(policy.tenant, policy.settings.limits)
        self.set(policy)

    def set(self, policy: TenantPolicy) -> None:
        """The policy is this one from now on."""
        self.policy = policy
        self.keys = inline(policy.settings.client_auth)
        self.pace.set(policy.settings.limits)

    @property
    def url(self) -> str:
        """Where more of its keys are to be had; empty for nowhere."""
        return self.policy.settings.client_auth.jwks_url

    @property
    def identities(self) -> frozenset[str]:
        """Of all that tokens were verified with, but for keys from elsewhere."""
        return self.keys.identities.union(map(_digest_key, self.policy.settings.client_auth.token_digests))


class AdmissionPolicy:
    """Decides by the policies of tenants. `now_s` is the wall clock, by which tokens expire."""

    def __init__(self, tenants: TenantPolicies, jwks: JwksCache, now_s: Callable[[], float]) -> None:
        self._tenants = tenants
        self._jwks = jwks
        self._now_s = now_s
        self._known: dict[str, TenantAuth] = {}

    def told(self, policy: TenantPolicy) -> frozenset[str]:
        """A tenant is new, or has changed. Returns the identities of keys that are no longer good."""
        self._tenants.told(policy)
        known = self._known.get(policy.tenant)
        if known is None:
            self._known[policy.tenant] = TenantAuth(policy)
            url, gone = "", frozenset[str]()
        else:
            url, before = known.url, known.identities
            known.set(policy)
            gone = before - known.identities
        # While all are told for the first time there are many, and `all_told` comes.
        if self._tenants.are_known and url != policy.settings.client_auth.jwks_url:
            self._use_urls()
        return gone

    def gone(self, name: str) -> None:
        """A tenant is no more."""
        self._tenants.gone(name)
        self._known.pop(name, None)
        self._use_urls()

    def all_told(self) -> None:
        """All tenants there are were told."""
        for name in self._tenants.all_told():
            self._known.pop(name, None)
        self._use_urls()

    def _use_urls(self) -> None:
        self._jwks.use({known.url for known in self._known.values() if known.url})

    def pace_of(self, name: str) -> TenantRateLimiter | None:
        """What the clients of a tenant may send; None for a tenant that there is not."""
        known = self._known.get(name)
        return known.pace if known else None

    def admit(
        self, visitor: ConnectAttempt, opened: ConnectionOpened, own_user: bool, now: float
    ) -> Principal | None:
        """Who the client is, by its token; None where it needs none, or what it asks for is no address.

        Fills in what `opened` says of it. `own_user`: the user in it is the client's own wish. Raises
        Refused, and UnknownKey where keys are to be fetched first; `keys_for` does that.
        """
        known = self._known.get(opened.address.tenant)
        if known is None:
            if is_id(opened.address.tenant):
                raise catalogue.UNKNOWN_TENANT.refused(tenant=opened.address.tenant)
            # The router says what is wrong with the address.
            return None
        policy = known.policy
        if policy.state != TENANT_STATE_ACTIVE:
            raise inactive(policy.tenant, policy.state)
        known.pace.connect(now)
        self._check_origin(known, visitor)
        if not self._needs_proof(known, visitor):
            return None
        bearer = self.verify(policy.tenant, visitor.token)
        bearer.check(opened, own_user)
        if own_user and not bearer.any_user:
            opened.user = bearer.user
        opened.grants.CopyFrom(bearer.grants())
        return bearer

    def verify(self, name: str, token: str) -> Principal:
        """Who shows this token to a tenant. Raises Refused, and UnknownKey."""
        known = self._known.get(name)
        if known is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        auth = known.policy.settings.client_auth
        digest = digest_of(token)
        if digest in auth.token_digests:
            return _anybody(_digest_key(digest))
        if not (auth.keys or auth.jwks_url):
            raise catalogue.UNAUTHORIZED.refused(problem="the token is not one of this tenant's")
        keys = known.keys | self._jwks.keys(auth.jwks_url) if auth.jwks_url else known.keys
        try:
            return verify(token, name, auth, keys, self._now_s())
        except UnknownKey as unknown:
            if not auth.jwks_url:
                raise unknown.refused() from None
            raise

    async def keys_for(self, name: str) -> None:
        """Fetch the keys of a tenant, unless that was tried just now."""
        known = self._known.get(name)
        if known is not None and known.url:
            await self._jwks.refresh(known.url)

    def _needs_proof(self, known: TenantAuth, visitor: ConnectAttempt) -> bool:
        """Whether the token counts. Raises Refused where there must be one, and there is none."""
        name = known.policy.tenant
        is_open = self._tenants.is_open(name, visitor.is_local)
        if visitor.token and (self._tenants.takes_tokens(name) or not is_open):
            return True
        if is_open:
            return False
        if self._tenants.is_open(name, is_local=True):
            problem = f"tenant {name} is open to this machine only; from elsewhere a token must be given"
        else:
            problem = "a token must be given"
        raise catalogue.UNAUTHORIZED.refused(problem=problem)

    def _check_origin(self, known: TenantAuth, visitor: ConnectAttempt) -> None:
        """Raises Refused ORIGIN_FORBIDDEN."""
        origins = known.policy.settings.origins
        if not visitor.origin or visitor.origin in origins:
            return
        # What is open to this machine is not open to all pages that are shown on it.
        by_place = not visitor.token and not self._tenants.is_open(known.policy.tenant, is_local=False)
        if origins or (by_place and not _is_local_page(visitor.origin)):
            raise catalogue.ORIGIN_FORBIDDEN.refused(origin=visitor.origin[:256])

    def allows_origin(self, name: str, origin: str) -> str:
        """What a response says in `Access-Control-Allow-Origin` to such a page; empty for nothing."""
        known = self._known.get(name)
        if known is None or not known.policy.settings.origins:
            return "*"
        return origin if origin in known.policy.settings.origins else ""


def _is_local_page(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or is_loopback(host)


def _digest_key(digest: str) -> str:
    return f"digest {digest}"


def _anybody(key: str) -> Principal:
    """Who shows a secret that a tenant's clients share: as whom they like, and what they like."""
    return Principal(
        user="",
        agents=None,
        platforms=None,
        persons=None,
        groups=None,
        rights=frozenset(RIGHTS.values()),
        token_id="",
        issued_at_s=None,
        expires_at_s=None,
        key=key,
        any_user=True,
    )
