"""Admission of clients by the policies of their tenants: state, rate limit, origin and token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.tenant_pb2 import TENANT_STATE_ACTIVE
from trunkline_runtime.allowed_addresses import AllowedAddresses
from trunkline_runtime.origins import normal_origin
from trunkline_runtime.tenant_policy import inactive

from trunkline_edge.auth.caller_policy import CONNECT, check_caller
from trunkline_edge.auth.claims import is_id
from trunkline_edge.auth.jwks import JwksCache
from trunkline_edge.auth.key_set import inline_keys
from trunkline_edge.auth.principal import RIGHTS, Principal
from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.auth.tokens import UnknownKey, verify
from trunkline_edge.auth.user_chats import enter_chat
from trunkline_edge.core.rate_limits import TenantRateLimiter
from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of


@dataclass(frozen=True, slots=True)
class ConnectAttempt:
    """The credentials and source of a connect request."""

    #: Empty if the client sent none.
    token: str
    source: RequestSource
    #: The token may be another system's; see Dialect.
    may_be_foreign: bool = False
    #: See ConnectPlan.
    is_visitor: bool = False


class TenantAuth:
    """One tenant's policy with the keys and the rate limiter made from it."""

    __slots__ = ("keys", "policy", "rate_limiter")

    def __init__(self, policy: TenantPolicy) -> None:
        self.rate_limiter = TenantRateLimiter(policy.tenant, policy.settings.limits)
        self.update(policy)

    def update(self, policy: TenantPolicy) -> None:
        """Replace the policy. Counts of the rate limiter stay."""
        self.policy = policy
        self.keys = inline_keys(policy.settings.client_auth)
        self.rate_limiter.set(policy.settings.limits)

    @property
    def jwks_url(self) -> str:
        """The URL of the tenant's JWK Set; empty for none."""
        return self.policy.settings.client_auth.jwks_url

    @property
    def identities(self) -> frozenset[str]:
        """Identities of the tenant's own keys and secrets, and of its bots that anybody may chat with.

        Those of a JWK Set are not among them.
        """
        settings = self.policy.settings
        return self.keys.identities.union(
            map(_digest_identity, settings.client_auth.token_digests),
            map(_bot_identity, settings.web_page_bots),
        )


class AdmissionPolicy:
    """Admits clients and verifies their tokens. `now_s` is the wall clock, by which tokens expire."""

    def __init__(self, tenants: TenantPolicies, jwks: JwksCache, now_s: Callable[[], float]) -> None:
        self._tenants = tenants
        self._jwks = jwks
        self._now_s = now_s
        self._auth: dict[str, TenantAuth] = {}

    # Updates from the router

    def put_tenant(self, policy: TenantPolicy) -> frozenset[str]:
        """Add or change a tenant. Returns the identities of keys that were revoked by the change."""
        policy = _with_normal_origins(policy)
        self._tenants.put(policy)
        auth = self._auth.get(policy.tenant)
        if auth is None:
            self._auth[policy.tenant] = TenantAuth(policy)
            url, revoked = "", frozenset[str]()
        else:
            url, before = auth.jwks_url, auth.identities
            auth.update(policy)
            revoked = before - auth.identities
        # During the first sync there are many, and `end_sync` follows.
        if self._tenants.are_known and url != policy.settings.client_auth.jwks_url:
            self._use_urls()
        return revoked

    def remove_tenant(self, name: str) -> None:
        """Remove a tenant, if present."""
        self._tenants.remove(name)
        self._auth.pop(name, None)
        self._use_urls()

    def end_sync(self) -> None:
        """All tenants were sent; remove those that were not among them."""
        for name in self._tenants.end_sync():
            self._auth.pop(name, None)
        self._use_urls()

    def _use_urls(self) -> None:
        self._jwks.use({auth.jwks_url for auth in self._auth.values() if auth.jwks_url})

    def rate_limiter(self, name: str) -> TenantRateLimiter | None:
        """The rate limiter of a tenant's clients; None for an unknown tenant."""
        auth = self._auth.get(name)
        return auth.rate_limiter if auth else None

    # Admission

    def admit(
        self, attempt: ConnectAttempt, opened: ConnectionOpened, names_user: bool, now: float, chat: str = ""
    ) -> Principal | None:
        """The principal of a client's token; None if the client needs none, or its address is invalid.

        Sets the grants in `opened`, and its user if the client named none. `names_user` if the client chose
        the user in `opened` itself. With `chat` the client connects to this chat of its user. Raises Refused;
        raises UnknownKey if keys must be fetched first, which `fetch_keys` does.
        """
        auth = self._auth.get(opened.address.tenant)
        if auth is None:
            if is_id(opened.address.tenant):
                raise catalogue.UNKNOWN_TENANT.refused(tenant=opened.address.tenant)
            # The router's error says what is wrong with the address.
            return None
        policy = auth.policy
        if policy.state != TENANT_STATE_ACTIVE:
            raise inactive(policy.tenant, policy.state)
        auth.rate_limiter.connect(now)
        if attempt.is_visitor:
            check_caller(policy, attempt.source, CONNECT, has_proof=True)
            principal: Principal | None = _visitor(opened, self._now_s())
        else:
            principal = self._principal_of(auth, attempt)
        if chat:
            enter_chat(opened, chat, principal)
        if principal is None:
            return None
        if not chat:
            principal.authorize(opened, names_user)
        if names_user and not principal.any_user:
            opened.user = principal.user
        opened.grants.CopyFrom(principal.grants())
        if not principal.any_user:
            # A token of nobody in particular closes no connection.
            opened.supersedes = opened.supersedes and bool(principal.user)
            opened.holder = principal.user if opened.supersedes else ""
        return principal

    def _principal_of(self, auth: TenantAuth, attempt: ConnectAttempt) -> Principal | None:
        """The principal of the token; None for a client that needs none. Raises Refused and UnknownKey."""
        name = auth.policy.tenant
        needs_none = self._tenants.is_open(name, attempt.source.is_local)
        if attempt.token and not (attempt.may_be_foreign and needs_none):
            check_caller(auth.policy, attempt.source, CONNECT, has_proof=True)
            return self.verify(name, attempt.token)
        principal = self._principal_if_valid(name, attempt.token) if attempt.token else None
        check_caller(auth.policy, attempt.source, CONNECT, has_proof=principal is not None)
        return principal

    def _principal_if_valid(self, name: str, token: str) -> Principal | None:
        """The principal of a token that may be another system's; None if it is not the tenant's.

        Nor is one with a key that is not known yet: the client needs no token, so no key is fetched for it.
        """
        try:
            return self.verify(name, token)
        except (Refused, UnknownKey):
            return None

    def verify(self, name: str, token: str) -> Principal:
        """The principal of a token that was sent to a tenant. Raises Refused and UnknownKey."""
        tenant = self._auth.get(name)
        if tenant is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        auth = tenant.policy.settings.client_auth
        digest = digest_of(token)
        if digest in auth.token_digests:
            return _shared_principal(_digest_identity(digest))
        if not (auth.keys or auth.jwks_url):
            raise catalogue.UNAUTHORIZED.refused(problem="the token is not one of this tenant's")
        keys = tenant.keys | self._jwks.keys(auth.jwks_url) if auth.jwks_url else tenant.keys
        try:
            return verify(token, name, auth, keys, self._now_s())
        except UnknownKey as unknown:
            if not auth.jwks_url:
                raise unknown.refused() from None
            raise

    def check_valid(self, name: str, principal: Principal) -> None:
        """Raises Refused if the token of a principal, verified before, or its key is no longer valid."""
        if principal.expires_at_s is not None and principal.expires_at_s <= self._now_s():
            raise catalogue.TOKEN_EXPIRED.refused()
        auth = self._auth.get(name)
        if auth is None:
            raise catalogue.UNKNOWN_TENANT.refused(tenant=name)
        if principal.key in auth.keys.identities:
            return
        if not auth.jwks_url or principal.key not in self._jwks.keys(auth.jwks_url).identities:
            raise catalogue.TOKEN_REVOKED.refused()

    async def fetch_keys(self, name: str) -> None:
        """Fetch a tenant's JWK Set, unless its cooldown has not passed."""
        auth = self._auth.get(name)
        if auth is not None and auth.jwks_url:
            await self._jwks.refresh(auth.jwks_url)


def _with_normal_origins(policy: TenantPolicy) -> TenantPolicy:
    """The policy with its origins as declared, and as browsers send them."""
    declared = policy.settings.origins
    normal = [origin for origin in map(normal_origin, declared) if origin not in declared]
    if not normal:
        return policy
    changed = TenantPolicy()
    changed.CopyFrom(policy)
    changed.settings.origins.extend(normal)
    return changed


def _digest_identity(digest: str) -> str:
    return f"digest {digest}"


def _bot_identity(bot: str) -> str:
    return f"bot {bot}"


def _visitor(opened: ConnectionOpened, now_s: float) -> Principal:
    """Principal for a visitor of a page that embeds a bot: one conversation, all rights in it.

    Dated like a token issued now, so that revoking all tokens ends it and does not bar the next visit.
    """
    address = opened.address
    ids = frozenset({address.conversation.id})
    is_group = address.conversation.kind == CONVERSATION_KIND_GROUP
    persons, groups = (frozenset[str](), ids) if is_group else (ids, frozenset[str]())
    return Principal(
        user=opened.user,
        addresses=AllowedAddresses(
            frozenset({address.agent}), frozenset({address.platform}), persons, groups
        ),
        rights=frozenset(RIGHTS.values()),
        token_id="",
        issued_at_s=now_s,
        expires_at_s=None,
        key=_bot_identity(address.agent),
    )


def _shared_principal(key: str) -> Principal:
    """Principal for a shared secret: any user, all rights."""
    return Principal(
        user="",
        addresses=AllowedAddresses(None, None, None, None),
        rights=frozenset(RIGHTS.values()),
        token_id="",
        issued_at_s=None,
        expires_at_s=None,
        key=key,
        any_user=True,
    )
