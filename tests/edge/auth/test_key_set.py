"""Keys that verify tokens: declared keys, JWK Sets and their validation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey
from trunkline.v1.tenant_pb2 import ClientAuth, VerificationKey
from trunkline_edge.auth.key_set import MAX_KEYS, MAX_SET_BYTES, KeySet, inline_keys, read_jwk_set
from trunkline_runtime.jose import to_base64url
from trunkline_runtime.jwk import check_jwk, jwk_of, key_of, without_secret

from tests.edge.auth.token_factory import ALGORITHMS, PRIVATE, declared
from tests.support.signing import public

PUBLIC: dict[str, dict[str, Any]] = {name: json.loads(public(key)) for name, key in PRIVATE.items()}


def problem_of(algorithm: str, members: object) -> str:
    """The error for a key; checks that it contains nothing of the key."""
    jwk = members if isinstance(members, str) else json.dumps(members)
    with pytest.raises(ValueError, match=r"\w") as caught:
        check_jwk(algorithm, jwk)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    if isinstance(members, dict):
        secrets = [str(members.get(name, "")) for name in ("k", "d", "p", "q")]
        assert not any(len(secret) > 5 and secret in text for secret in secrets)
    return text


def a_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_tenants_keys_are_found_by_name_and_algorithm(algorithm: str) -> None:
    keys = inline_keys(declared())
    (found,) = keys.find(algorithm, algorithm)
    assert (found.kid, found.algorithm) == (algorithm, algorithm)
    assert [found] == list(keys.find(None, algorithm))
    assert list(keys.find("other", algorithm)) == []
    assert algorithm in keys
    assert "other" not in keys
    for other in set(ALGORITHMS) - {algorithm}:
        assert list(keys.find(algorithm, other)) == []
    assert len(keys) == len(keys.identities) == 4


def test_keys_are_the_same_if_name_and_key_are() -> None:
    def identity(kid: str, /, **members: object) -> str:
        key = VerificationKey(kid=kid, algorithm="ES256", jwk=json.dumps({**PUBLIC["ES256"], **members}))
        return next(iter(inline_keys(ClientAuth(keys=[key])).identities))

    assert identity("a") == identity("a", use="sig", alg="ES256", kid="ignored", x5c=["x"], other=1)
    assert identity("a") != identity("b")
    other = ECKey.generate_key("P-256").as_dict(private=False)
    assert identity("a") != identity("a", x=other["x"], y=other["y"])
    secret = json.dumps(PUBLIC["HS256"])
    (shown,) = inline_keys(
        ClientAuth(keys=[VerificationKey(kid="s", algorithm="HS256", jwk=secret)])
    ).identities
    assert PUBLIC["HS256"]["k"] not in shown


def test_an_identity_is_that_of_the_key_however_it_is_written() -> None:
    members = PUBLIC["RS256"]
    padded = to_base64url(b"\0\1\0\1")
    assert (
        key_of("RS256", json.dumps(members)).thumbprint()
        == key_of("RS256", json.dumps({**members, "e": padded})).thumbprint()
    )


def test_keys_of_two_places_are_put_together() -> None:
    own, fetched = inline_keys(declared("RS256")), read_jwk_set(a_set({**PUBLIC["ES256"], "kid": "ES256"}))
    both = own | fetched
    assert both.identities == own.identities | fetched.identities
    assert len(both | own) == 2
    assert len(own) == 1
    assert "RS256" in repr(both)


def test_a_key_that_does_not_fit_is_refused_by_its_name() -> None:
    auth = ClientAuth(keys=[VerificationKey(kid="k7", algorithm="RS256", jwk=public(PRIVATE["ES256"]))])
    with pytest.raises(ValueError, match="key k7: a JWK for RS256 must have the `kty` RSA"):
        inline_keys(auth)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_is_for_one_algorithm_only(algorithm: str) -> None:
    check_jwk(algorithm, json.dumps({**PUBLIC[algorithm], "alg": algorithm, "use": "sig"}))
    check_jwk(algorithm, json.dumps({**PUBLIC[algorithm], "key_ops": ["verify"]}))
    for other in set(ALGORITHMS) - {algorithm}:
        assert "`kty`" in problem_of(other, PUBLIC[algorithm])
    assert "`alg`" in problem_of(algorithm, {**PUBLIC[algorithm], "alg": "RS512"})
    assert "`use`" in problem_of(algorithm, {**PUBLIC[algorithm], "use": "enc"})
    for operations in (["sign"], [], "verify", None, 1):
        assert "`key_ops`" in problem_of(algorithm, {**PUBLIC[algorithm], "key_ops": operations})


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_private_key_is_refused(algorithm: str) -> None:
    assert "private key" in problem_of(algorithm, PRIVATE[algorithm].as_dict(private=True))
    assert "private key" in problem_of(algorithm, {**PUBLIC[algorithm], "d": ""})


def test_a_key_is_as_strong_as_it_must_be_and_not_slow() -> None:
    check_jwk("HS256", json.dumps({"kty": "oct", "k": to_base64url(bytes(32))}))
    assert "31 bytes" in problem_of("HS256", {"kty": "oct", "k": to_base64url(b"\1" * 31)})
    assert "public key" in problem_of("HS256", {"kty": "oct", "k": to_base64url(b"ssh-rsa " + b"A" * 40)})
    assert "2047 bits" in problem_of("RS256", {**PUBLIC["RS256"], "n": to_base64url(b"\x7f" + b"\xff" * 255)})
    assert "8200 bits" in problem_of("RS256", {**PUBLIC["RS256"], "n": to_base64url(b"\xff" * 1025)})
    assert "exponent" in problem_of("RS256", {**PUBLIC["RS256"], "e": to_base64url(b"\1" * 9)})
    assert "not a valid RSA" in problem_of("RS256", {**PUBLIC["RS256"], "e": to_base64url(b"\1")})
    assert "not a valid RSA" in problem_of("RS256", {**PUBLIC["RS256"], "e": to_base64url(b"\2")})


@pytest.mark.parametrize(
    "jwk", ["", "{", "[]", "null", '"x"', '{"kty":"oct","kty":"RSA"}', "\ud800", "[" * 8000, '{"k":NaN}']
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_a_json_object_is_a_key(algorithm: str, jwk: str) -> None:
    assert problem_of(algorithm, jwk).startswith("the JWK ")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("wrong", [None, 1, True, [], {}, "", "=", "AA==", "a+b/", "ä", "A", "AB", "\x00"])
def test_a_key_with_a_wrong_member_is_refused(algorithm: str, wrong: object) -> None:
    for name in set(PUBLIC[algorithm]):
        problem_of(algorithm, {**PUBLIC[algorithm], name: wrong})
        problem_of(algorithm, {other: value for other, value in PUBLIC[algorithm].items() if other != name})


def test_an_algorithm_that_nobody_knows_has_no_keys() -> None:
    for algorithm in ("", "none", "HS512", "hs256", "ES256K"):
        assert "HS256, RS256, ES256, EdDSA" in problem_of(algorithm, PUBLIC["ES256"])
        with pytest.raises(ValueError, match="PEM"):
            jwk_of(algorithm, b"x" * 32)


# Conversion


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_pem_becomes_a_jwk_that_is_the_same_key(algorithm: str) -> None:
    key = PRIVATE[algorithm]
    assert not isinstance(key, OctKey)
    pem = key.as_pem(private=False)
    for source in (pem, pem.decode(), b"\n" + pem):
        assert key_of(algorithm, jwk_of(algorithm, source)).thumbprint() == key.thumbprint()
    with pytest.raises(ValueError, match="private key"):
        jwk_of(algorithm, key.as_pem(private=True))
    for other in {"RS256", "ES256", "EdDSA"} - {algorithm}:
        with pytest.raises(ValueError, match="holds no"):
            jwk_of(other, pem)


def test_a_secret_becomes_a_jwk() -> None:
    key = key_of("HS256", jwk_of("HS256", "s" * 32))
    assert key.raw_value == b"s" * 32
    for wrong in ("s" * 31, b"", PRIVATE["RS256"].as_pem(private=False)):  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"bytes|public key"):
            jwk_of("HS256", wrong)


@pytest.mark.parametrize(
    "source",
    [b"", b"x" * 40, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "ssh-ed25519 AAAA"],
)
def test_only_pem_becomes_a_jwk(source: str | bytes) -> None:
    for algorithm in ("RS256", "ES256", "EdDSA"):
        with pytest.raises(ValueError, match="PEM"):
            jwk_of(algorithm, source)


def test_a_weak_pem_becomes_no_jwk() -> None:
    weak = ECKey.generate_key("P-384")
    with pytest.raises(ValueError, match="P-256"):
        jwk_of("ES256", weak.as_pem(private=False))
    with pytest.raises(ValueError, match="Ed25519"):
        jwk_of("EdDSA", OKPKey.generate_key("Ed448").as_pem(private=False))
    with pytest.raises(ValueError, match="1024 bits"):
        jwk_of("RS256", WEAK_RSA)


WEAK_RSA = """-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCpUcoMrh/39hsdl78dAw9InUGJ
bmOOx6kdNHNzXYAkkLq03QMlIJjpzpuBP5MUgOb+xvqt7S1RnTGYhJ4NCMIHy7yG
TJFY4ULFnisPDYBRtOj7dJrvsYwIilwozBwCRo/xW/oaruij42h9+6XDXf9bXyGo
MX3E5DiIyZnehVeRcQIDAQAB
-----END PUBLIC KEY-----
"""


def test_a_jwk_is_reported_without_its_secret() -> None:
    assert json.loads(without_secret(json.dumps(PUBLIC["HS256"]))) == {"kty": "oct"}
    for algorithm in ("RS256", "ES256", "EdDSA"):
        private = PRIVATE[algorithm].as_dict(private=True)
        assert json.loads(without_secret(json.dumps(private))) == PUBLIC[algorithm]
    for broken in ("", "{", "[]", '{"k":"a","k":"b"}'):
        assert without_secret(broken) == "{}"


# JWK Sets


def test_a_set_gives_the_keys_that_can_verify_tokens() -> None:
    keys = read_jwk_set(
        a_set(
            {**PUBLIC["RS256"], "kid": "r", "alg": "RS256", "use": "sig", "x5c": ["MII"], "x5t": "a"},
            {**PUBLIC["ES256"], "kid": "e"},
            PUBLIC["EdDSA"],
        )
    )
    assert [key.kid for key in keys.find("r", "RS256")] == ["r"]
    assert [key.kid for key in keys.find("e", "ES256")] == ["e"]
    assert [key.kid for key in keys.find(None, "EdDSA")] == [""]


def test_other_keys_of_a_set_are_ignored() -> None:
    private = PRIVATE["ES256"].as_dict(private=True)
    others: list[object] = [
        {**PUBLIC["HS256"], "kid": "a"},
        {**PUBLIC["RS256"], "use": "enc"},
        {**PUBLIC["RS256"], "alg": "RS512"},
        {**PUBLIC["RS256"], "n": to_base64url(b"\xff" * 128)},
        {**PUBLIC["ES256"], "alg": "HS256"},
        {**PUBLIC["ES256"], "kid": 1},
        {**PUBLIC["ES256"], "kid": "x" * 129},
        {**PUBLIC["ES256"], "key_ops": ["sign"]},
        {**PUBLIC["ES256"], "kty": ["EC"]},
        private,
        ECKey.generate_key("P-521").as_dict(private=False),
        OKPKey.generate_key("X25519").as_dict(private=False),
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "x"},
        {},
        [],
        None,
        "key",
        1,
    ]
    keys = read_jwk_set(a_set(*others, {**PUBLIC["EdDSA"], "kid": "good"}))
    assert [key.kid for key in keys] == ["good"]


def test_a_set_is_bounded_and_a_set() -> None:
    key = {**PUBLIC["EdDSA"], "kid": "k"}
    assert len(read_jwk_set(a_set(*[{**key, "kid": f"{n}"} for n in range(MAX_KEYS)]))) == MAX_KEYS
    with pytest.raises(ValueError, match="65 keys"):
        read_jwk_set(a_set(*[key] * (MAX_KEYS + 1)))
    with pytest.raises(ValueError, match="bytes"):
        read_jwk_set(b" " * (MAX_SET_BYTES + 1))
    for wrong in (b"", b"{}", b"[]", b'{"keys":{}}', b'{"keys":null}', b"<html>", b"\xff", b"[" * 200_000):
        with pytest.raises(ValueError, match="the JWK Set "):
            read_jwk_set(wrong)
    assert len(read_jwk_set(b'{"keys":[]}')) == len(KeySet()) == 0


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=3)


# Drawing the first text may build Hypothesis' Unicode tables, which takes a second.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from(ALGORITHMS),
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "k", "d", "use", "alg", "kid"]), values
    ),
)
def test_whatever_the_members_a_key_fits_or_is_refused(algorithm: str, members: dict[str, Any]) -> None:
    for said in (members, {**PUBLIC[algorithm], **members}):
        try:
            check_jwk(algorithm, json.dumps(said))
        except ValueError as error:
            str(error).encode()
        read_jwk_set(json.dumps({"keys": [said]}).encode().replace(b"NaN", b"0").replace(b"Infinity", b"0"))
