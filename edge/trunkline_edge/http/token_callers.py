"""Callers with a client's token, which the edge verifies and then names to the router."""

from __future__ import annotations

import time

from starlette.requests import Request
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED
from trunkline.v1.catalogue import Refused
from trunkline_runtime.call_metadata import TOKEN_HOLDER, bearer_token
from trunkline_runtime.jose import is_jwt
from trunkline_runtime.tenant_policy import not_for_clients

from trunkline_edge.admission import Admission
from trunkline_edge.auth.admission_policy import AdmissionPolicy
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_edge.core.rate_limits import ConnectionRateLimiter, TenantRateLimiter
from trunkline_edge.dialects.codec import FREE_VALUES
from trunkline_edge.dialects.json_text import count_above
from trunkline_edge.dialects.tenant_policies import TenantPolicies, digest_of
from trunkline_edge.http.bindings import Binding
from trunkline_edge.http.sources import source_of

#: Users with a rate limiter. Beyond it, the one that called least recently starts over with a full bucket.
MAX_LIMITERS = 10_000


class TokenCaller:
    """The holder of a verified token, limited like a connection of theirs."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        tenant: str,
        principal: Principal,
        limiter: ConnectionRateLimiter,
        body_bytes: int,
    ) -> None:
        self.principal = principal
        self._policy = policy
        self._tenant = tenant
        self._limiter = limiter
        #: Bound of a body: that of a frame.
        self.body_bytes = body_bytes

    @property
    def metadata(self) -> tuple[str, bytes]:
        """The metadata entry that names the caller to the router."""
        return TOKEN_HOLDER, self.principal.holder(self._tenant).SerializeToString()

    def take(self, body: bytes, *, is_json: bool = True) -> None:
        """Count a call, with the values of its JSON like those of a frame.

        Raises Refused over a limit, and if the token or its key became invalid while the body arrived.
        """
        self._policy.check_valid(self._tenant, self.principal)
        now = time.monotonic()
        reason = self._limiter.take(len(body), now)
        if reason is not None:
            raise reason
        if is_json and (values := count_above(body, FREE_VALUES)):
            self._limiter.charge(values, now)


class TokenCallers:
    """Verifies the tokens of callers. Each user has one rate limiter, whatever the number of connections."""

    def __init__(self, admission: Admission, tenants: TenantPolicies, frame_bytes: int) -> None:
        """`frame_bytes` is the edge's bound of a frame; a tenant's may be lower."""
        self._frame_bytes = frame_bytes
        self._admission = admission
        self._tenants = tenants
        #: By tenant and user, or the digest of a token without one; the last caller at the end.
        self._limiters: dict[tuple[str, str], ConnectionRateLimiter] = {}

    async def identify(self, request: Request, binding: Binding, tenant: str) -> TokenCaller | None:
        """The caller of an RPC; None if the request bears no JSON Web Token.

        Raises Refused for a token that is not valid, and FORBIDDEN if clients may not call this RPC.
        """
        token = self._token_of(request)
        if token is None:
            return None
        if not tenant:
            # There is no tenant to verify it for.
            raise not_for_clients(binding.scope)
        caller = await self._verified(request, tenant, token)
        if binding.client_right == RIGHT_UNSPECIFIED:
            raise not_for_clients(binding.scope)
        return caller

    async def identify_in_dialect(self, request: Request, tenant: str) -> TokenCaller | None:
        """The caller of a dialect's route; None if the request bears no JSON Web Token.

        The dialect's clients may send another system's token in any case. On a tenant that is open to the
        caller, a token that is not valid is ignored. Raises Refused for one on any other tenant.
        """
        token = self._token_of(request)
        if token is None or not tenant:
            return None
        if not self._tenants.is_open(tenant, source_of(request).is_local):
            return await self._verified(request, tenant, token)
        try:
            # No key is fetched for a token that the caller does not need.
            principal = self._admission.policy.verify(tenant, token)
        except (Refused, UnknownKey):
            return None
        return self._caller(tenant, token, principal)

    def _token_of(self, request: Request) -> str | None:
        token = bearer_token(request.headers.get("authorization", ""))
        if token is None or not is_jwt(token) or self._tenants.tenant_of_token(token):
            return None
        return token

    async def _verified(self, request: Request, tenant: str, token: str) -> TokenCaller:
        try:
            principal = await self._admission.verify_caller(tenant, token)
        except Refused as reason:
            remote_ip = request.client.host if request.client else ""
            self._admission.count_refused(reason, tenant=tenant, remote_ip=remote_ip, protocol="http")
            raise
        return self._caller(tenant, token, principal)

    def _caller(self, tenant: str, token: str, principal: Principal) -> TokenCaller:
        limiter = self._limiter_of(tenant, principal.user or digest_of(token))
        body_bytes = min(self._frame_bytes, limiter.tenant.frame_bytes)
        return TokenCaller(self._admission.policy, tenant, principal, limiter, body_bytes)

    def _limiter_of(self, tenant: str, user: str) -> ConnectionRateLimiter:
        shared = self._admission.policy.rate_limiter(tenant)
        limiter = self._limiters.pop((tenant, user), None)
        if limiter is None or limiter.tenant is not shared:
            # A tenant that was deleted and created again has another.
            assert isinstance(shared, TenantRateLimiter)
            limiter = ConnectionRateLimiter(shared, "this user")
        self._limiters[tenant, user] = limiter
        if len(self._limiters) > MAX_LIMITERS:
            del self._limiters[next(iter(self._limiters))]
        return limiter
