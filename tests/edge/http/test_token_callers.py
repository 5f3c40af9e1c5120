"""Callers with a client's token are verified and limited by the edge, and named to the router."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.requests import Request
from trunkline.v1.access_pb2 import RIGHT_PUBLISH, TokenHolder
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import PoliciesTold, TenantGone, TenantPolicy
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http import token_callers
from trunkline_edge.http.bindings import bindings
from trunkline_edge.http.token_callers import TokenCaller, TokenCallers

from tests.edge.http.token_admission import admission_of, no_fetch
from tests.support.declared_tenants import policy
from tests.support.patience import patient
from tests.support.signing import Signer

pytestmark = pytest.mark.io

SIGNER = Signer("acme")
BINDINGS = {binding.method.name: binding for binding in bindings()}
JWKS_URL = "https://keys.example/set"


def acme(*keys: Signer, secret: str = "", **auth: Any) -> TenantPolicy:
    made = policy("acme", tokens=[secret] if secret else ["other"])
    made.settings.client_auth.MergeFrom(ClientAuth(keys=[key.declared() for key in keys], **auth))
    return made


class Edge:
    """The part of an edge that identifies callers."""

    def __init__(self, *policies: TenantPolicy, fetch: Any = no_fetch, now_s: Any = time.time) -> None:
        tenants = TenantPolicies()
        self.admission = admission_of(tenants, fetch, now_s)
        for each in (*policies, PoliciesTold()):
            self.admission.apply(each)
        self.callers = TokenCallers(self.admission, tenants, 1 << 20)

    async def identify(
        self, token: str, rpc: str = "Broadcast", tenant: str = "acme", header: str = "authorization"
    ) -> TokenCaller | None:
        value = f"Bearer {token}" if header == "authorization" else token
        scope = {"type": "http", "client": ("192.0.2.1", 1), "headers": [(header.encode(), value.encode())]}
        async with asyncio.timeout(patient(10)):
            return await self.callers.identify(Request(scope), BINDINGS[rpc], tenant)

    async def refusal(self, *arguments: Any, **named: Any) -> str:
        with pytest.raises(Refused) as refused:
            await self.identify(*arguments, **named)
        return f"{refused.value.entry.code}: {refused.value}"


async def test_the_holder_of_a_token_is_named_to_the_router() -> None:
    claims = {"agents": ["echo"], "conversations": ["person:ann", "group:tea"], "rights": ["publish"]}
    caller = await Edge(acme(SIGNER)).identify(SIGNER.token("ann", trunkline=claims, jti="t1", iat=5))
    assert caller is not None
    name, value = caller.metadata
    holder = TokenHolder.FromString(value)
    assert name == "trunkline-client-bin"
    assert (holder.tenant, holder.user, list(holder.agents), list(holder.persons)) == (
        "acme",
        "ann",
        ["echo"],
        ["ann"],
    )
    assert (holder.all_agents, holder.all_platforms, holder.grants.all_groups) == (False, True, False)
    assert (list(holder.grants.groups), list(holder.grants.rights)) == (["tea"], [RIGHT_PUBLISH])
    assert (holder.grants.token_id, holder.grants.issued_at.seconds) == ("t1", 5)


async def test_other_credentials_are_left_to_the_router() -> None:
    secret = SIGNER.token("a secret that looks like a token")
    edge = Edge(acme(SIGNER, secret=secret))
    for token in ("", "tl_1_x", "my.operator.key", "e30.x", secret):
        assert await edge.identify(token) is None
    assert await edge.identify(SIGNER.token("ann"), header="x-api-key") is None


async def test_calls_that_take_no_token_are_refused_whatever_the_token() -> None:
    edge = Edge(acme(SIGNER))
    good = SIGNER.token("ann")
    # There is no tenant to verify it for.
    assert "takes the operator's key" in await edge.refusal(good, "ListTenants", tenant="")
    assert "takes an API key with SCOPE_PRESENCE" in await edge.refusal(good, "GetStats")
    wrong = Signer("acme").token("ann")
    assert (await edge.refusal(wrong, "GetStats")).startswith("UNAUTHORIZED: ")
    assert edge.admission._runtime.core.counts.refused_by["UNAUTHORIZED"] == 1


async def test_an_unknown_key_is_fetched_once() -> None:
    fetched = []

    async def fetch(url: str) -> bytes:
        fetched.append(url)
        return json.dumps({"keys": [SIGNER.jwk()]}).encode()

    edge = Edge(acme(jwks_url=JWKS_URL), fetch=fetch)
    for _ in range(2):
        assert await edge.identify(SIGNER.token("ann")) is not None
    unknown = Signer("acme", "k2").token("ann")
    assert "unknown key: k2" in await edge.refusal(unknown)
    assert set(fetched) == {JWKS_URL}


async def test_a_caller_waits_for_a_tenant_that_was_declared_a_moment_ago() -> None:
    edge = Edge()
    waiting = asyncio.create_task(edge.identify(SIGNER.token("ann")))
    for each in (policy("other"), acme(SIGNER)):
        await asyncio.sleep(0)
        edge.admission.apply(each)
    assert await waiting is not None
    edge.admission.apply(TenantGone(tenant="acme"))
    assert (await edge.refusal(SIGNER.token("ann"))).startswith("UNKNOWN_TENANT: ")
    assert (await edge.refusal(SIGNER.token("ann"), tenant="no/id")).startswith("UNKNOWN_TENANT: ")


async def test_a_caller_is_not_refused_before_the_tenants_are_known() -> None:
    edge = Edge()
    edge.callers._tenants.are_known = False
    assert (await edge.refusal(SIGNER.token("ann"))).startswith("ROUTER_UNAVAILABLE: ")


async def test_all_calls_of_a_user_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_callers, "MAX_LIMITERS", 3)
    limited = acme(SIGNER)
    limited.settings.limits.connection_messages_per_s = 2
    edge = Edge(limited)

    async def take(user: str) -> str:
        caller = await edge.identify(SIGNER.token(user) if user else anonymous)
        assert caller is not None
        try:
            caller.take(b"")
        except Refused as reason:
            return reason.entry.code
        return ""

    anonymous = SIGNER.token("", sub=...)
    for user in ("ann", ""):
        assert [await take(user) for _ in range(3)] == ["", "", "RATE_LIMITED"]
    assert await take("bob") == ""
    # Beyond the bound, the user that called least recently starts over.
    assert await take("ann") == "RATE_LIMITED"
    assert await take("eve") == ""
    assert set(edge.callers._limiters) == {("acme", user) for user in ("bob", "ann", "eve")}
    assert await take("ann") == "RATE_LIMITED"
    # A tenant that was deleted and created again has limits of its own.
    edge.admission.apply(TenantGone(tenant="acme"))
    edge.admission.apply(limited)
    assert await take("ann") == ""


async def test_a_token_that_becomes_invalid_while_the_body_arrives_is_refused() -> None:
    now_s, new = time.time(), Signer("acme", "k2")
    edge = Edge(acme(SIGNER), now_s=lambda: now_s)
    caller = await edge.identify(SIGNER.token("ann", lifetime_s=60))
    assert caller is not None

    def taken() -> str:
        try:
            caller.take(b"{}")
        except Refused as reason:
            return reason.entry.code
        return ""

    edge.admission.apply(acme(SIGNER, new))
    assert taken() == ""
    edge.admission.apply(acme(new))
    assert taken() == "TOKEN_REVOKED"
    edge.admission.apply(TenantGone(tenant="acme"))
    assert taken() == "UNKNOWN_TENANT"
    now_s += 61
    assert taken() == "TOKEN_EXPIRED"


async def test_the_key_of_a_set_stays_valid_while_the_body_arrives() -> None:
    async def fetch(url: str) -> bytes:
        return json.dumps({"keys": [SIGNER.jwk()]}).encode()

    edge = Edge(acme(jwks_url=JWKS_URL), fetch=fetch)
    caller = await edge.identify(SIGNER.token("ann"))
    assert caller is not None
    caller.take(b"{}")
    edge.admission.apply(acme(jwks_url=JWKS_URL + "/other"))
    with pytest.raises(Refused) as refused:
        caller.take(b"{}")
    assert refused.value.entry.code == "TOKEN_REVOKED"
