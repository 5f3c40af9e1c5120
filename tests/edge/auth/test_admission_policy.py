"""Admission of clients by tenant policy."""

from __future__ import annotations

from typing import Any

import pytest
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON, Address
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.tenant_pb2 import (
    OPENNESS_ANYBODY,
    OPENNESS_LOOPBACK,
    OPENNESS_NOBODY,
    TENANT_STATE_DELETING,
    TENANT_STATE_SUSPENDED,
    ClientAuth,
    TenantLimits,
)
from trunkline_edge.auth.admission_policy import AdmissionPolicy, ConnectAttempt
from trunkline_edge.auth.jwks import JwksCache
from trunkline_edge.auth.principal import Principal
from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.edge.auth.token_factory import ALGORITHMS, AUTH, NOW_S, declared, minted
from tests.support.declared_tenants import policy

URL = "https://keys.example/jwks.json"


async def nothing(url: str) -> bytes:
    return b'{"keys": []}'


def admission(*policies: TenantPolicy) -> AdmissionPolicy:
    made = AdmissionPolicy(TenantPolicies(), JwksCache(nothing, lambda: 0.0), lambda: NOW_S)
    for each in policies:
        made.put_tenant(each)
    made.end_sync()
    return made


def tenant(auth: ClientAuth = AUTH, name: str = "acme", **settings: Any) -> TenantPolicy:
    made = policy(name, **{"open_to": OPENNESS_NOBODY, **settings})
    made.settings.client_auth.MergeFrom(auth)
    return made


def wish(name: str = "acme", user: str = "") -> ConnectionOpened:
    address = Address(tenant=name, agent="a", platform="web")
    address.conversation.kind, address.conversation.id = CONVERSATION_KIND_GROUP, "team"
    return ConnectionOpened(address=address, user=user)


def visitor(
    token: str = "", origin: str = "", is_local: bool = True, may_be_foreign: bool = False
) -> ConnectAttempt:
    source = RequestSource("127.0.0.1" if is_local else "192.0.2.1", has_local_host=True, origin=origin)
    return ConnectAttempt(token, source, may_be_foreign)


def refusal(
    made: AdmissionPolicy, who: ConnectAttempt, opened: ConnectionOpened | None = None, now: float = 0
) -> str:
    with pytest.raises(Refused) as refused:
        made.admit(who, opened or wish(), names_user=True, now=now)
    return f"{refused.value.entry.code}: {refused.value}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_sets_the_user_and_the_grants(algorithm: str) -> None:
    opened = wish()
    bearer = admission(tenant()).admit(visitor(minted(algorithm, jti="j1")), opened, names_user=True, now=0)
    assert isinstance(bearer, Principal)
    assert (opened.user, opened.grants.token_id, opened.grants.all_groups) == ("ann", "j1", True)
    assert opened.grants.expires_at.seconds == NOW_S + 60


def test_a_user_that_the_protocol_names_itself_stays() -> None:
    opened = wish(user="echo/web")
    admission(tenant()).admit(visitor(minted()), opened, names_user=False, now=0)
    assert opened.user == "echo/web"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", (True, "")),
        ("s3cret", (True, "")),
        (minted(), (True, "ann")),
        (minted(sub=...), (False, "")),
    ],
)
def test_a_token_supersedes_connections_of_its_own_user_only(token: str, expected: tuple[bool, str]) -> None:
    opened = wish(user="web@a")
    opened.supersedes = True
    made = admission(_open_with_secret())
    made.admit(visitor(token), opened, names_user=False, now=0)
    assert (opened.supersedes, opened.holder) == expected


def _open_with_secret() -> TenantPolicy:
    made = tenant(open_to=OPENNESS_LOOPBACK)
    made.settings.client_auth.MergeFrom(policy("acme", tokens=["s3cret"]).settings.client_auth)
    return made


def test_a_shared_secret_lets_anybody_in_as_anybody() -> None:
    made = admission(policy("acme", tokens=["s3cret"]))
    for user in ("bob", ""):
        opened = wish(user=user)
        assert made.admit(visitor("s3cret"), opened, names_user=True, now=0) is not None
        assert (opened.user, len(opened.grants.rights), opened.HasField("grants")) == (user, 4, True)
    assert refusal(made, visitor("s3cret2")).startswith("UNAUTHORIZED: ")
    assert "s3cret" not in refusal(made, visitor("s3cret2"))


@pytest.mark.parametrize(
    ("open_to", "is_local", "token", "expected"),
    [
        (OPENNESS_NOBODY, True, "", "a token must be given"),
        (OPENNESS_LOOPBACK, True, "", ""),
        (OPENNESS_LOOPBACK, False, "", "open to this machine only"),
        (OPENNESS_ANYBODY, False, "", ""),
        # A token that is sent must be valid.
        (OPENNESS_ANYBODY, True, "wrong", "UNAUTHORIZED"),
        (OPENNESS_LOOPBACK, False, minted(), ""),
    ],
)
def test_without_a_token_a_client_must_be_admitted_by_openness(
    open_to: int, is_local: bool, token: str, expected: str
) -> None:
    made = admission(tenant(open_to=open_to))
    if expected:
        assert expected in refusal(made, visitor(token, is_local=is_local))
    else:
        bearer = made.admit(visitor(token, is_local=is_local), wish(), names_user=True, now=0)
        assert (bearer is not None) == bool(token)


@pytest.mark.parametrize("open_to", [OPENNESS_LOOPBACK, OPENNESS_ANYBODY])
@pytest.mark.parametrize("auth", [ClientAuth(), AUTH, ClientAuth(audiences=["chat"], jwks_url=URL)])
def test_a_wrong_token_is_refused_however_open_the_tenant_is(open_to: int, auth: ClientAuth) -> None:
    made = admission(tenant(auth, open_to=open_to))
    assert refusal(made, visitor("abc")).startswith("UNAUTHORIZED: ")


@pytest.mark.parametrize("auth", [ClientAuth(), AUTH, ClientAuth(audiences=["chat"], jwks_url=URL)])
def test_another_systems_token_is_ignored_where_none_is_needed(auth: ClientAuth) -> None:
    made = admission(tenant(auth, open_to=OPENNESS_LOOPBACK), policy("keys", tokens=["s3cret"], open_to=3))
    for token in ("abc", minted("ES256", aud="another")):
        attempt = visitor(token, may_be_foreign=True)
        assert made.admit(attempt, wish(), names_user=True, now=0) is None
        # An ignored token proves nothing.
        elsewhere = visitor(token, is_local=False, may_be_foreign=True)
        with pytest.raises((Refused, UnknownKey)):
            made.admit(elsewhere, wish(), names_user=True, now=0)
        page = visitor(token, origin="https://evil.example", may_be_foreign=True)
        assert refusal(made, page).startswith("ORIGIN_FORBIDDEN: ")
    # A valid one counts.
    shared = visitor("s3cret", may_be_foreign=True)
    assert made.admit(shared, wish("keys"), names_user=True, now=0) is not None


def test_nobody_is_let_in_to_a_tenant_that_there_is_not() -> None:
    assert refusal(admission(), visitor(), wish("nobody")) == "UNKNOWN_TENANT: Tenant nobody does not exist"


@pytest.mark.parametrize("name", ["", "no body", "a/b", "x" * 129])
def test_an_invalid_tenant_name_is_left_to_the_router_to_refuse(name: str) -> None:
    assert admission().admit(visitor(), wish(name), names_user=True, now=0) is None


@pytest.mark.parametrize(
    ("state", "code"),
    [(TENANT_STATE_SUSPENDED, "TENANT_SUSPENDED"), (TENANT_STATE_DELETING, "UNKNOWN_TENANT")],
)
def test_a_tenant_that_takes_no_part_lets_nobody_in(state: int, code: str) -> None:
    suspended = tenant()
    suspended.state = state  # type: ignore[assignment]
    assert refusal(admission(suspended), visitor(minted())).startswith(f"{code}: ")


@pytest.mark.parametrize(
    ("origins", "open_to", "token", "origin", "is_taken"),
    [
        ([], OPENNESS_NOBODY, minted(), "https://any.example", True),
        (["https://a.example"], OPENNESS_NOBODY, minted(), "https://a.example", True),
        (["https://a.example"], OPENNESS_NOBODY, minted(), "", True),
        (["https://a.example"], OPENNESS_NOBODY, minted(), "https://b.example", False),
        (["https://a.example"], OPENNESS_NOBODY, minted(), "https://a.example.evil", False),
        (["https://a.example"], OPENNESS_NOBODY, minted(), "null", False),
        # A tenant open to this machine is not open to every page that a browser on it displays.
        ([], OPENNESS_LOOPBACK, "", "https://evil.example", False),
        ([], OPENNESS_LOOPBACK, "", "null", False),
        ([], OPENNESS_LOOPBACK, "", "http://localhost:3000", True),
        ([], OPENNESS_LOOPBACK, "", "http://127.0.0.1", True),
        ([], OPENNESS_LOOPBACK, "", "http://localhost.evil.example", False),
        ([], OPENNESS_LOOPBACK, minted(), "https://any.example", True),
        (["https://a.example"], OPENNESS_LOOPBACK, "", "https://a.example", True),
        # As operators may write it.
        (["https://A.Example:443"], OPENNESS_LOOPBACK, "", "https://a.example", True),
        (["https://A.Example:443"], OPENNESS_LOOPBACK, "", "https://A.Example:443", True),
        (["http://a.example:80"], OPENNESS_LOOPBACK, "", "http://a.example", True),
        (["http://a.example:443"], OPENNESS_LOOPBACK, "", "http://a.example", False),
        (["http://[::1]:80"], OPENNESS_ANYBODY, "", "http://[::1]", True),
        ([], OPENNESS_ANYBODY, "", "https://any.example", True),
    ],
)
def test_web_pages_connect_from_permitted_origins(
    origins: list[str], open_to: int, token: str, origin: str, is_taken: bool
) -> None:
    made = admission(tenant(origins=origins, open_to=open_to))
    if is_taken:
        made.admit(visitor(token, origin), wish(), names_user=True, now=0)
    else:
        assert refusal(made, visitor(token, origin)).startswith("ORIGIN_FORBIDDEN: ")


def test_connects_are_counted_before_anything_is_verified() -> None:
    limited = tenant()
    limited.settings.limits.MergeFrom(TenantLimits(connects_per_s=2))
    made = admission(limited)
    for _ in range(2):
        assert refusal(made, visitor("wrong")).startswith("UNAUTHORIZED: ")
    assert refusal(made, visitor(minted())).startswith("TOO_MANY_CONNECTS: ")
    assert made.admit(visitor(minted()), wish(), names_user=True, now=1) is not None


def test_an_unknown_key_is_fetched_if_the_tenant_has_a_jwk_set() -> None:
    asking = ClientAuth(audiences=AUTH.audiences, jwks_url=URL)
    with pytest.raises(UnknownKey):
        admission(tenant(asking)).admit(visitor(minted()), wish(), names_user=True, now=0)
    assert "an unknown key" in refusal(admission(tenant(declared("RS256"))), visitor(minted()))


def test_keys_that_are_taken_away_or_changed_are_named_and_no_others() -> None:
    made = admission(tenant())
    bearer = made.admit(visitor(minted("ES256")), wish(), names_user=True, now=0)
    assert bearer is not None
    assert made.put_tenant(tenant(origins=["https://a.example"])) == frozenset()
    assert made.put_tenant(tenant(declared("RS256", "HS256", "EdDSA"))) == {bearer.key}
    secrets = admission(policy("acme", tokens=["one", "two"]))
    one = secrets.admit(visitor("one"), wish(), names_user=True, now=0)
    assert one is not None
    assert secrets.put_tenant(policy("acme", tokens=["two"])) == {one.key}


def test_a_tenant_that_is_gone_is_known_no_longer() -> None:
    made = admission(tenant())
    assert made.rate_limiter("acme") is not None
    made.remove_tenant("acme")
    assert made.rate_limiter("acme") is None
    assert refusal(made, visitor()).startswith("UNKNOWN_TENANT: ")


def chat_of(made: AdmissionPolicy, token: str, chat: str = "c1", user: str = "") -> str:
    opened = wish(user=user)
    made.admit(visitor(token), opened, names_user=True, now=0, chat=chat)
    assert opened.address.conversation.kind == CONVERSATION_KIND_PERSON
    return opened.address.conversation.id


def test_a_chat_belongs_to_the_user_of_the_token() -> None:
    made = admission(tenant(), policy("demo", open_to=OPENNESS_ANYBODY, tokens=["s3cret"]))
    assert chat_of(made, minted()) == "ann»c1"
    assert chat_of(made, minted(), user="bob") == "ann»c1"
    assert chat_of(made, minted(trunkline={"conversations": ["person:ann"]})) == "ann»c1"
    opened = wish("demo", "bob")
    made.admit(visitor(), opened, names_user=True, now=0, chat="c1")
    assert (opened.user, opened.address.conversation.id) == ("bob", "bob»c1")


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "ann»c1"},
        {"trunkline": {"conversations": ["group:team"]}},
        {"trunkline": {"agents": ["other"]}},
        {"trunkline": {"platforms": ["other"]}},
    ],
)
def test_a_token_that_does_not_allow_its_user_has_no_chats(claims: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"token does not allow|has no chats"):
        chat_of(admission(tenant()), minted(**claims))


def test_no_user_is_mistaken_for_the_chat_of_another() -> None:
    """Users may choose their ids: one that reads like a chat does not open that chat."""
    opened = wish()
    opened.address.conversation.kind, opened.address.conversation.id = CONVERSATION_KIND_PERSON, "ann»c1"
    made = admission(tenant())
    assert "token does not allow person:ann»c1" in refusal(made, visitor(minted(sub="ann»c1")), opened)
    named = minted(sub="auditor", trunkline={"conversations": ["person:ann»c1"]})
    assert made.admit(visitor(named), opened, names_user=True, now=0) is not None
