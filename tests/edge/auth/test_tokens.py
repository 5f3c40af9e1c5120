"""Verification of tokens, and the principals they name."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
)
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON, Address, Conversation
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_edge.auth.key_set import KeySet
from trunkline_edge.auth.tokens import UnknownKey

from tests.edge.auth.token_factory import (
    ALGORITHMS,
    AUTH,
    CLAIMS,
    KEYS,
    NOW_S,
    PRIVATE,
    minted,
    refusal,
    signed,
    taken,
)
from tests.support.signing import part

ALL_RIGHTS = frozenset({RIGHT_PUBLISH, RIGHT_SUBSCRIBE, RIGHT_HISTORY, RIGHT_CANCEL})
YEAR_S = 366 * 24 * 3600


def opened(conversation: str = "", user: str = "", **address: str) -> ConnectionOpened:
    """A client's connect request."""
    wish = ConnectionOpened(user=user, address=Address(tenant="acme", agent="echo", platform="web"))
    for name, value in address.items():
        setattr(wish.address, name, value)
    if conversation:
        kind, _, ident = conversation.partition(":")
        kinds = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP, "none": 0}
        wish.address.conversation.CopyFrom(Conversation(kind=kinds[kind], id=ident))  # type: ignore[arg-type]
    return wish


def forbidden(token: str, wish: ConnectionOpened) -> str:
    """The text of the FORBIDDEN."""
    with pytest.raises(Refused) as caught:
        taken(token).authorize(wish)
    assert caught.value.entry.code == "FORBIDDEN"
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_says_who_shows_it_and_that_all_is_allowed(algorithm: str) -> None:
    bearer = taken(minted(algorithm, jti="t1", iat=NOW_S - 5))
    assert (bearer.user, bearer.token_id) == ("ann", "t1")
    assert (bearer.issued_at_s, bearer.expires_at_s) == (NOW_S - 5, NOW_S + 60)
    assert (bearer.addresses.agents, bearer.addresses.platforms, bearer.addresses.groups) == (
        None,
        None,
        None,
    )
    assert bearer.addresses.persons == {"ann"}
    assert bearer.rights == ALL_RIGHTS
    assert bearer.key == KEYS.find(algorithm, algorithm)[0].identity


def test_the_router_receives_the_permissions_of_a_token() -> None:
    own = {"conversations": ["group:b", "group:a", "person:p"], "rights": ["subscribe", "publish"]}
    grants = taken(minted(jti="t1", iat=NOW_S - 0.25, trunkline=own)).grants()
    assert list(grants.rights) == [RIGHT_PUBLISH, RIGHT_SUBSCRIBE]
    assert list(grants.groups) == ["a", "b"]
    assert not grants.all_groups
    assert grants.token_id == "t1"
    assert grants.issued_at.ToMilliseconds() == NOW_S * 1000 - 250
    assert grants.expires_at.ToSeconds() == NOW_S + 60
    grants = taken(minted()).grants()
    assert grants.all_groups
    assert not grants.HasField("issued_at")
    assert len(grants.rights) == 4


def test_a_token_may_name_nobody() -> None:
    bearer = taken(minted(sub=...))
    assert bearer.user == ""
    assert bearer.addresses.persons == frozenset()
    bearer.authorize(opened())
    bearer.authorize(opened("group:any"))
    assert "no user" in forbidden(minted(sub=...), opened(user="ann"))
    assert "person:ann" in forbidden(minted(sub=...), opened("person:ann"))


# Recipient


def test_a_token_is_for_one_of_the_tenants_audiences() -> None:
    assert taken(minted(aud=["x", "other"])).user == "ann"
    assert "is for audience x or y, not for chat or other" in refusal(minted(aud=["x", "y"]))
    assert "audience Chat, not" in refusal(minted(aud="Chat"))
    assert "nobody" in refusal(minted(aud=[]))
    for wrong in (..., 1, None, {"chat": 1}, ["chat", 1]):
        assert "`aud`" in refusal(minted(aud=wrong))


def test_without_audiences_a_token_must_name_the_tenant() -> None:
    auth = ClientAuth(keys=AUTH.keys)
    assert "`tenant` claim" in refusal(minted(), auth)
    assert taken(minted(tenant="acme"), auth).user == "ann"
    assert taken(minted(tenant="acme", aud=...), auth).user == "ann"


@pytest.mark.parametrize("wrong", ["other", "Acme", "acme ", "", None, 1, ["acme"], True])
def test_a_token_that_names_another_tenant_is_refused_whatever_its_audience(wrong: object) -> None:
    assert "not for acme" in refusal(minted(tenant=wrong))
    assert "not for acme" in refusal(minted(tenant=wrong), ClientAuth(keys=AUTH.keys))


def test_a_token_is_from_the_tenants_issuer() -> None:
    auth = ClientAuth(keys=AUTH.keys, audiences=["chat"], issuer="https://id.example")
    assert taken(minted(iss="https://id.example"), auth).user == "ann"
    assert "issued by nobody, not by https://id.example" in refusal(minted(), auth)
    assert "issued by https://id.example/, not by" in refusal(minted(iss="https://id.example/"), auth)
    assert "issued by nobody" in refusal(minted(iss=["https://id.example"]), auth)
    assert taken(minted(iss="anybody")).user == "ann"


# Times


def test_a_token_is_valid_until_it_expires_and_then_must_be_renewed() -> None:
    assert taken(minted(exp=NOW_S + 0.001)).user == "ann"
    for past in (NOW_S, NOW_S - 1, 0):
        with pytest.raises(Refused) as caught:
            taken(minted(exp=past))
        assert caught.value.entry.code == "TOKEN_EXPIRED"


def test_an_invalid_token_is_refused_even_if_it_has_expired() -> None:
    for wrong in ({"aud": "x"}, {"sub": ""}, {"trunkline": {"x": 1}}, {"nbf": NOW_S + 31}, {"jti": 1}):
        refusal(minted(exp=NOW_S - 1, **wrong))


def test_a_token_expires_within_a_year() -> None:
    assert "no `exp`" in refusal(minted(exp=...))
    assert taken(minted(exp=NOW_S + YEAR_S)).user == "ann"
    assert "366 days" in refusal(minted(exp=NOW_S + YEAR_S + 1))


def test_clocks_may_differ_by_half_a_minute() -> None:
    assert taken(minted(nbf=NOW_S + 30, iat=NOW_S + 30)).user == "ann"
    assert "`nbf`" in refusal(minted(nbf=NOW_S + 30.5))
    assert "`iat`" in refusal(minted(iat=NOW_S + 30.5))


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "wrong", [True, False, None, "1800000060", [], {}, -1, -0.5, 1e300, 10**400, 253402300800]
)
def test_a_time_is_a_number_of_seconds(name: str, wrong: object) -> None:
    assert f"`{name}` must be a number of seconds" in refusal(minted(**{name: wrong}))


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
def test_a_time_is_a_number_that_there_is(written: str) -> None:
    for name in ("exp", "iat", "nbf"):
        claims = json.dumps({**CLAIMS, name: 0}).replace(f'"{name}": 0', f'"{name}": {written}')
        refusal(signed({"alg": "ES256", "kid": "ES256"}, claims))


# User and permissions

NO_IDS = [
    "",
    " ",
    "a b",
    "a/b",
    "a:b",
    "a\n",
    "\u00a0",
    "\x85",
    "\x7f",
    "x" * 129,
    "\u2003",
    1,
    None,
    True,
    {},
]


@pytest.mark.parametrize("wrong", NO_IDS)
def test_an_id_is_one_by_the_rule_of_addresses(wrong: Any) -> None:
    assert "`sub`" in refusal(minted(sub=wrong))
    assert "agents" in refusal(minted(trunkline={"agents": ["a", wrong]}))
    assert "platforms" in refusal(minted(trunkline={"platforms": [wrong]}))
    named = f"person:{wrong}" if isinstance(wrong, str) else wrong
    assert "conversations" in refusal(minted(trunkline={"conversations": ["group:g", named]}))


def test_an_id_may_have_any_other_letters() -> None:
    assert taken(minted(sub="äß中😀-_.@" + "x" * 119)).user.startswith("äß中😀")


def test_half_a_surrogate_pair_is_no_text_anywhere() -> None:
    header = {"alg": "ES256", "kid": "ES256"}
    for claims in ({"sub": "\ud800"}, {"other": ["\udfff"]}, {"\ud800": 1}, {"jti": "\ud83d"}):
        assert "not JSON" in refusal(signed(header, {**CLAIMS, **claims}))
    assert "not JSON" in refusal(signed({**header, "kid": "\ud800"}, CLAIMS))
    assert taken(signed(header, {**CLAIMS, "sub": "\ud83d\ude00"})).user == "😀"


@pytest.mark.parametrize("wrong", ["", 1, None, "a\nb", "x" * 257, "\x9f", ["a"]])
def test_the_id_of_a_token_is_a_short_line(wrong: object) -> None:
    assert "`jti`" in refusal(minted(jti=wrong))


@pytest.mark.parametrize("wrong", [None, [], "x", 1, True])
def test_the_claim_trunkline_is_an_object(wrong: object) -> None:
    assert "`trunkline` must be an object" in refusal(minted(trunkline=wrong))


@pytest.mark.parametrize("name", ["agents", "platforms", "conversations", "rights"])
@pytest.mark.parametrize("wrong", [None, "echo", {"echo": 1}, [1], [None], [["echo"]], ["x"] * 1025])
def test_permissions_of_a_token_are_lists_of_strings(name: str, wrong: object) -> None:
    assert f"`trunkline.{name}`" in refusal(minted(trunkline={name: wrong}))


def test_unknown_members_of_the_trunkline_claim_are_refused() -> None:
    for own in ({"agent": ["a"]}, {"Rights": []}, {"rights": [], "groups": []}):
        assert "and nothing else" in refusal(minted(trunkline=own))
    for wrong in ("admin", "Publish", "", "publish "):
        assert "publish, subscribe, history, cancel" in refusal(minted(trunkline={"rights": [wrong]}))
    for wrong in ("ann", "user:ann", "Person:ann", "person", "person:", ":ann", "group:a:b", "persons:a"):
        assert "conversations" in refusal(minted(trunkline={"conversations": [wrong]}))


def test_empty_lists_allow_nothing() -> None:
    own: dict[str, Any] = {"agents": [], "platforms": [], "conversations": [], "rights": []}
    bearer = taken(minted(trunkline=own))
    assert (
        bearer.addresses.agents,
        bearer.addresses.platforms,
        bearer.addresses.persons,
        bearer.addresses.groups,
    ) == (frozenset(),) * 4
    assert bearer.rights == frozenset()
    assert not bearer.grants().all_groups
    assert taken(minted(trunkline={})).rights == ALL_RIGHTS


# Authorization


def test_a_client_connects_as_the_user_of_its_token_to_permitted_addresses() -> None:
    bearer = taken(minted())
    for wish in (opened(), opened(user="ann"), opened("person:ann"), opened("group:any", agent="other")):
        bearer.authorize(wish)
    own = {"agents": ["echo"], "platforms": ["web"], "conversations": ["person:bob", "group:g"]}
    bearer = taken(minted(trunkline=own))
    for wish in (opened(), opened("person:bob"), opened("group:g")):
        bearer.authorize(wish)


def test_a_forbidden_connect_names_the_missing_permission() -> None:
    assert "for user ann, not for user bob" in forbidden(minted(), opened(user="bob"))
    assert "does not allow person:bob" in forbidden(minted(), opened("person:bob"))
    own = {"agents": ["echo"], "platforms": ["web"], "conversations": ["group:g"]}
    token = minted(trunkline=own)
    assert "agent other" in forbidden(token, opened(agent="other"))
    assert "agent " in forbidden(token, opened(agent=""))
    assert "platform qq" in forbidden(token, opened(platform="qq"))
    assert "group:h" in forbidden(token, opened("group:h"))
    assert "person:ann" in forbidden(token, opened("person:ann"))
    assert "person:g" in forbidden(token, opened("person:g"))
    assert "person or a group" in forbidden(minted(), opened("none:ann"))
    assert "clients cannot connect" in forbidden(minted(), opened(user="ann", connection="c1"))


def test_a_user_that_a_dialect_made_up_is_not_looked_at() -> None:
    bearer = taken(minted())
    bearer.authorize(opened(user="derived"), names_user=False)
    with pytest.raises(Refused):
        bearer.authorize(opened("person:bob", user="derived"), names_user=False)


# Keys


def test_an_unknown_key_is_reported_by_name() -> None:
    for algorithm in ("RS256", "ES256", "EdDSA"):
        with pytest.raises(UnknownKey) as caught:
            taken(minted(algorithm, {"kid": "new"}))
        assert caught.value.kid == "new"
        assert caught.value.refused().entry.code == "UNAUTHORIZED"
    with pytest.raises(UnknownKey) as caught:
        taken(minted("ES256", {"kid": ...}), keys=KeySet())
    assert caught.value.kid is None


def test_a_secret_that_is_not_known_is_in_no_jwk_set_either() -> None:
    assert "unknown key: new" in refusal(minted("HS256", {"kid": "new"}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_without_kid_is_tried_with_the_few_keys_there_are(algorithm: str) -> None:
    token = minted(algorithm, {"kid": ...})
    right = KEYS.find(algorithm, algorithm)[0]
    others = [right._replace(kid=f"{n}", identity=f"{n}", key=wrong_key(algorithm)) for n in range(4)]
    assert taken(token, keys=KeySet([*others[:3], right])).key == right.identity
    assert "signature is wrong" in refusal(token, keys=KeySet(others))
    assert "must have a `kid`" in refusal(token, keys=KeySet([*others, right]))


def test_of_two_keys_of_one_name_either_may_have_signed() -> None:
    right = KEYS.find("ES256", "ES256")[0]
    other = right._replace(identity="other", key=wrong_key("ES256"))
    assert taken(minted(), keys=KeySet([other, right])).key == right.identity


def wrong_key(algorithm: str) -> Any:
    """A key with the same name and algorithm as the right one."""
    if algorithm == "HS256":
        return PRIVATE[algorithm].generate_key(256)
    return PRIVATE[algorithm].generate_key()


# Arbitrary input


@given(st.sampled_from(ALGORITHMS), st.data())
def test_a_good_token_with_one_byte_changed_is_refused(algorithm: str, data: st.DataObject) -> None:
    token = GOOD[algorithm]
    place = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.characters(max_codepoint=255).filter(lambda other: other != token[place]))
    with pytest.raises((Refused, UnknownKey)):
        taken(token[:place] + byte + token[place + 1 :], keys=KEYS)
    with pytest.raises((Refused, UnknownKey)):
        taken(token[:place] + byte + token[place:], keys=KEYS)
    with pytest.raises((Refused, UnknownKey)):
        taken(token[:place] + token[place + 1 :], keys=KEYS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_has_no_twin_that_ends_otherwise(algorithm: str) -> None:
    # The last character of base64 has unused bits.
    token = GOOD[algorithm]
    for other in set(string.ascii_letters + string.digits + "-_") - {token[-1]}:
        refusal(token[:-1] + other, keys=KEYS)


GOOD = {algorithm: minted(algorithm) for algorithm in ALGORITHMS}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([NOW_S, "ann", "chat"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["sub", "aud", "iss", "exp", "nbf", "iat", "jti", "tenant", "trunkline"]) | st.text()
own_names = st.sampled_from(["agents", "platforms", "conversations", "rights"]) | st.text()


@given(st.dictionaries(names, values, max_size=6), st.dictionaries(own_names, values, max_size=4) | values)
def test_whatever_the_claims_a_token_is_taken_or_refused(claims: dict[str, Any], own: Any) -> None:
    for said in (claims, {**CLAIMS, **claims}, {**CLAIMS, "trunkline": own}):
        with suppress(Refused):
            bearer = taken(signed({"alg": "ES256", "kid": "ES256"}, said), keys=KEYS)
            assert bearer.grants().expires_at.ToSeconds() >= NOW_S


@given(st.text() | st.builds("{}.{}.{}".format, st.text(), st.text(), st.text()), st.binary(), st.binary())
def test_whatever_the_text_a_token_is_taken_or_refused(text: str, header: bytes, payload: bytes) -> None:
    for token in (text, f"{part(header)}.{part(payload)}.{part(b'x')}", signed(header, payload)):
        with pytest.raises((Refused, UnknownKey)) as caught:
            taken(token, keys=KEYS)
        str(caught.value).encode()


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]) | st.text(), values, max_size=5))
def test_whatever_the_header_a_token_is_taken_or_refused(header: dict[str, Any]) -> None:
    for said in (header, {"alg": "ES256", **header}, {"kid": "ES256", "alg": "ES256", **header}):
        with suppress(Refused, UnknownKey):
            taken(signed(said, CLAIMS), keys=KEYS)
