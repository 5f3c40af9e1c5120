"""Attacks on tokens, by section of RFC 8725."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_edge.auth.key_set import KeySet
from trunkline_edge.auth.tokens import UnknownKey
from trunkline_runtime.jose import from_base64url, to_base64url
from trunkline_runtime.jwk import check_jwk

from tests.edge.auth.token_factory import (
    AUTH,
    CLAIMS,
    KEYS,
    NOW_S,
    PRIVATE,
    declared,
    minted,
    refusal,
    signed,
    taken,
)
from tests.support.signing import part, public

STRANGER = ECKey.generate_key("P-256")
RSA_PEM = PRIVATE["RS256"].as_pem(private=False)  # type: ignore[union-attr]
EC_PEM = PRIVATE["ES256"].as_pem(private=False)  # type: ignore[union-attr]
#: The order of P-256.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def unsigned(algorithm: object, signature: str = "") -> str:
    """A token with the algorithm `none`."""
    return f"{part({'alg': algorithm, 'kid': 'ES256'})}.{part(CLAIMS)}.{signature}"


def confused(pem: bytes, kid: str) -> str:
    """HS256 with the public key's PEM as the secret, which joserfc refuses to sign."""
    content = f"{part({'alg': 'HS256', 'kid': kid})}.{part(CLAIMS)}"
    return f"{content}.{to_base64url(hmac.new(pem, content.encode(), hashlib.sha256).digest())}"


def with_signature(signature: bytes, algorithm: str = "ES256") -> str:
    """A valid token with its signature replaced."""
    head, _, _ = minted(algorithm).rpartition(".")
    return f"{head}.{to_base64url(signature)}"


def es256(r: int, s: int) -> str:
    return with_signature(r.to_bytes(32) + s.to_bytes(32))


def as_json() -> str:
    """A token in JSON serialization, with two signatures."""
    protected, payload, signature = minted().split(".")
    each = {"protected": protected, "signature": signature}
    return json.dumps({"payload": payload, "signatures": [each, each]})


def flattened() -> str:
    protected, payload, signature = minted().split(".")
    return json.dumps({"payload": payload, "protected": protected, "signature": signature})


def twice(text: str, name: str, value: object) -> str:
    """JSON with a duplicate name."""
    return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}"


HEADER = {"alg": "ES256", "kid": "ES256"}
OWN_JWK = STRANGER.as_dict(private=False)


def stranger(**header: Any) -> str:
    """A token signed with an attacker's key, which the header contains or references."""
    return signed({**HEADER, **header}, CLAIMS, "ES256", STRANGER)


def detached() -> str:
    header, _, signature = minted().split(".")
    return f"{header}..{signature}"


def unencoded() -> str:
    """A token with an unencoded payload (RFC 7797)."""
    header = part({**HEADER, "b64": False, "crit": ["b64"]})
    return f"{header}.payload.{part(b'x' * 64)}"


Attack = Callable[[], str]

ATTACKS: dict[str, tuple[Attack, str]] = {
    "2.1 alg none": (lambda: unsigned("none"), "not signed"),
    "2.1 alg none with a signature": (lambda: unsigned("none", "AA"), "`alg`"),
    "2.1 alg None": (lambda: unsigned("None", "AA"), "`alg`"),
    "2.1 alg NONE": (lambda: unsigned("NONE", "AA"), "`alg`"),
    "2.1 alg nOnE": (lambda: unsigned("nOnE", "AA"), "`alg`"),
    "2.1 alg none with a blank": (lambda: unsigned("none ", "AA"), "`alg`"),
    "2.1 alg empty": (lambda: unsigned("", "AA"), "`alg`"),
    "2.1 alg null": (lambda: unsigned(None, "AA"), "`alg`"),
    "2.1 alg absent": (lambda: minted(header={"alg": ...}), "`alg`"),
    "2.1 alg a list": (lambda: minted(header={"alg": ["ES256"]}), "`alg`"),
    "2.1 alg an object": (lambda: minted(header={"alg": {"ES256": 1}}), "`alg`"),
    "2.1 alg in lower case": (lambda: minted(header={"alg": "es256"}), "`alg`"),
    "2.1 no signature": (lambda: minted().rpartition(".")[0] + ".", "not signed"),
    "2.1 no third part": (lambda: minted().rpartition(".")[0], "compact form"),
    "2.1 HS256 with the RSA key's PEM": (lambda: confused(RSA_PEM, "RS256"), "not for HS256"),
    "2.1 HS256 with the EC key's PEM": (lambda: confused(EC_PEM, "ES256"), "not for HS256"),
    "2.1 HS256 with the PEM and another kid": (lambda: confused(RSA_PEM, "HS256"), "signature is wrong"),
    "2.1 HS256 with the JWK": (
        lambda: confused(public(PRIVATE["RS256"]).encode(), "HS256"),
        "signature is wrong",
    ),
    "2.1 HS256 with an empty secret": (lambda: confused(b"", "HS256"), "signature is wrong"),
    "2.1 signature of something else": (
        lambda: f"{minted(sub='eve').rpartition('.')[0]}.{minted().rpartition('.')[2]}",
        "signature is wrong",
    ),
    "2.1 psychic signature": (lambda: es256(0, 0), "signature is wrong"),
    "2.1 psychic signature, r=0": (lambda: es256(0, 1), "signature is wrong"),
    "2.1 psychic signature, s=0": (lambda: es256(1, 0), "signature is wrong"),
    "2.1 psychic signature, r=n": (lambda: es256(ORDER, ORDER), "signature is wrong"),
    "2.1 ES256 signature of no bytes to speak of": (lambda: with_signature(b"\0"), "signature is wrong"),
    "2.1 ES256 signature in DER": (
        lambda: with_signature(bytes.fromhex("3006020101020101")),
        "signature is wrong",
    ),
    "2.1 ES256 signature with more behind": (
        lambda: with_signature(from_base64url(minted().rpartition(".")[2]) + b"\0"),
        "signature is wrong",
    ),
    "2.1 RS256 signature of zeros": (lambda: with_signature(bytes(256), "RS256"), "signature is wrong"),
    "2.1 RS256 signature of one": (
        lambda: with_signature(bytes(255) + b"\1", "RS256"),
        "signature is wrong",
    ),
    "2.1 RS256 signature too short": (lambda: with_signature(b"x", "RS256"), "signature is wrong"),
    "2.1 EdDSA signature of zeros": (lambda: with_signature(bytes(64), "EdDSA"), "signature is wrong"),
    "2.1 EdDSA signature too short": (lambda: with_signature(b"x", "EdDSA"), "signature is wrong"),
    "2.1 EdDSA signature with a twin": (
        lambda: with_signature(_eddsa_twin(), "EdDSA"),
        "signature is wrong",
    ),
    "2.1 signature in another base64": (
        lambda: minted("RS256").replace("-", "+").replace("_", "/"),
        "not base64url",
    ),
    "2.1 signature with padding": (lambda: minted() + "==", "not base64url"),
    "2.1 payload left out (RFC 7515, F)": (detached, "signature is wrong"),
    "2.3 encrypted, five parts": (lambda: f"{part({'alg': 'dir', 'enc': 'A128GCM'})}..AA.AA.AA", "encrypted"),
    "2.3 an `enc` in a signed one": (lambda: minted(header={"enc": "A128GCM"}), "`enc`"),
    "2.4 compressed": (
        lambda: signed({**HEADER, "zip": "DEF"}, zlib.compress(json.dumps(CLAIMS).encode())[2:-4]),
        "`zip`",
    ),
    "2.4 compressed, and not said": (
        lambda: signed(HEADER, gzip.compress(json.dumps(CLAIMS).encode())),
        "not UTF-8",
    ),
    "2.5 key agreement": (lambda: minted(header={"alg": "ECDH-ES"}), "`alg`"),
    "2.6 UTF-16": (lambda: signed(HEADER, json.dumps(CLAIMS).encode("utf-16")), "not UTF-8"),
    "2.6 UTF-16 without a mark": (lambda: signed(HEADER, json.dumps(CLAIMS).encode("utf-16-be")), "not JSON"),
    "2.6 UTF-32": (lambda: signed(HEADER, json.dumps(CLAIMS).encode("utf-32-le")), "not JSON"),
    "2.6 header in UTF-16": (lambda: signed(json.dumps(HEADER).encode("utf-16"), CLAIMS), "not UTF-8"),
    "2.6 byte order mark": (
        lambda: signed(HEADER, b"\xef\xbb\xbf" + json.dumps(CLAIMS).encode()),
        "not JSON",
    ),
    "2.6 UTF-8 that is none": (lambda: signed(HEADER, b'{"sub":"\xff"}'), "not UTF-8"),
    "2.6 claim twice": (lambda: signed(HEADER, twice(json.dumps(CLAIMS), "sub", "eve")), "duplicate name"),
    "2.6 claim twice, inside": (
        lambda: signed(HEADER, '{"trunkline":{"rights":["publish"],"rights":[]},"exp":1}'),
        "duplicate name",
    ),
    "2.6 claim twice, once escaped": (
        lambda: signed(HEADER, json.dumps(CLAIMS)[:-1] + ',"\\u0073ub":"eve"}'),
        "duplicate name",
    ),
    "2.6 alg twice": (lambda: signed(twice(json.dumps(HEADER), "alg", "none"), CLAIMS), "duplicate name"),
    "2.6 kid twice": (lambda: signed(twice(json.dumps(HEADER), "kid", "RS256"), CLAIMS), "duplicate name"),
    "2.6 JSON with more behind": (lambda: signed(HEADER, json.dumps(CLAIMS) + "{}"), "not JSON"),
    "2.6 JSON with NaN": (lambda: signed(HEADER, '{"x":NaN}'), "not JSON"),
    "2.6 JSON that is deep": (lambda: signed(HEADER, "[" * 11000), "not JSON"),
    "2.6 JSON that is deep and whole": (lambda: signed(HEADER, "[" * 5500 + "]" * 5500), "not JSON"),
    "2.6 payload a list": (lambda: signed(HEADER, [CLAIMS]), "not a JSON object"),
    "2.6 payload a text": (lambda: signed(HEADER, json.dumps("ann")), "not a JSON object"),
    "2.6 payload null": (lambda: signed(HEADER, "null"), "not a JSON object"),
    "2.6 header a list": (lambda: signed([HEADER], CLAIMS), "not a JSON object"),
    "2.7 for another tenant": (lambda: minted(tenant="other"), "is for tenant other"),
    "2.7 for another audience": (lambda: minted(aud="billing"), "is for audience billing"),
    "2.8 of another kind: logout": (lambda: minted(header={"typ": "logout+jwt"}), "`typ`"),
    "2.8 of another kind: event": (lambda: minted(header={"typ": "secevent+jwt"}), "`typ`"),
    "2.9 kid a path": (lambda: minted("HS256", {"kid": "../../dev/null"}), "unknown key"),
    "2.9 kid SQL": (lambda: minted("HS256", {"kid": "x' UNION SELECT 'key'; --"}), "unknown key"),
    "2.9 kid a command": (lambda: minted("HS256", {"kid": "|rm -rf /"}), "unknown key"),
    "2.9 kid a format": (lambda: minted("HS256", {"kid": "{problem} {0.__class__} %s"}), "unknown key"),
    "2.9 kid long": (lambda: minted(header={"kid": "x" * 129}), "`kid`"),
    "2.9 kid empty": (lambda: minted(header={"kid": ""}), "`kid`"),
    "2.9 kid null": (lambda: minted(header={"kid": None}), "`kid`"),
    "2.9 kid a list": (lambda: minted(header={"kid": ["ES256"]}), "`kid`"),
    "2.9 kid with a line break": (lambda: minted(header={"kid": "ES256\n"}), "`kid`"),
    "2.9 kid with a zero byte": (lambda: minted(header={"kid": "ES256\0"}), "`kid`"),
    "2.9 jku": (lambda: stranger(jku="https://evil.example/keys"), "`jku`"),
    "2.9 x5u": (lambda: stranger(x5u="https://evil.example/cert"), "`x5u`"),
    "2.9 jwk": (lambda: stranger(jwk=OWN_JWK), "`jwk`"),
    "2.9 x5c": (lambda: stranger(x5c=["MII"]), "`x5c`"),
    "2.9 jku beside a good signature": (lambda: minted(header={"jku": "https://a.example"}), "`jku`"),
    "3.1 key for another algorithm": (lambda: minted("RS256", {"kid": "ES256"}), "not for RS256"),
    "3.1 algorithm of another key": (lambda: minted("ES256", {"alg": "EdDSA"}), "not for EdDSA"),
    "3.1 RS384 with the RSA key": (
        lambda: signed({"alg": "RS384", "kid": "RS256"}, CLAIMS, "RS384", PRIVATE["RS256"]),
        "`alg`",
    ),
    "3.1 PS256 with the RSA key": (
        lambda: signed({"alg": "PS256", "kid": "RS256"}, CLAIMS, "PS256", PRIVATE["RS256"]),
        "`alg`",
    ),
    "3.1 PS256 said to be RS256": (
        lambda: signed({"alg": "RS256", "kid": "RS256"}, CLAIMS, "PS256", PRIVATE["RS256"]),
        "signature is wrong",
    ),
    "3.1 HS512 with the secret": (
        lambda: signed({"alg": "HS512", "kid": "HS256"}, CLAIMS, "HS512", PRIVATE["HS256"]),
        "`alg`",
    ),
    "3.2 ES256K": (lambda: minted(header={"alg": "ES256K"}), "`alg`"),
    "3.2 Ed448": (lambda: minted(header={"alg": "Ed448"}), "`alg`"),
    "3.3 signed by a stranger": (stranger, "signature is wrong"),
    "3.3 nested": (lambda: signed({**HEADER, "cty": "JWT"}, minted()), "`cty`"),
    "3.3 nested, and not said": (lambda: signed(HEADER, minted()), "not JSON"),
    "3.3 in JSON with two signatures": (as_json, "compact form"),
    "3.3 in flattened JSON": (flattened, "compact form"),
    "3.3 crit": (lambda: minted(header={"crit": ["exp"], "exp": 1}), "`crit`"),
    "3.3 crit empty": (lambda: minted(header={"crit": []}), "`crit`"),
    "3.3 crit null": (lambda: minted(header={"crit": None}), "`crit`"),
    "3.3 b64 true": (lambda: minted(header={"b64": True}), "`b64`"),
    "3.3 payload not encoded": (unencoded, "`crit`"),
    "3.7 letters beyond ASCII": (lambda: "ä" + minted()[1:], "base64url"),
    "3.7 full-width dots": (lambda: minted().replace(".", "\uff0e"), "compact form"),
    "3.7 blank before": (lambda: " " + minted(), "base64url"),
    "3.7 line break behind": (lambda: minted() + "\n", "base64url"),
    "3.7 blank inside": (lambda: minted().replace(".", ". "), "base64url"),
    "3.7 zero byte": (lambda: minted() + "\0", "base64url"),
    "3.7 half a surrogate pair": (lambda: "\ud800" + minted()[1:], "base64url"),
    "3.8 subject no text": (lambda: minted(sub=1), "`sub`"),
    "3.8 subject with a line break": (lambda: minted(sub="ann\n"), "`sub`"),
    "3.9 no audience": (lambda: minted(aud=...), "audience"),
    "3.9 audience part of a text": (lambda: minted(aud="chat,other"), "audience"),
    "3.9 audience of another type": (lambda: minted(aud={"0": "chat"}), "audience"),
    "3.10 what nobody knows is allowed": (lambda: minted(trunkline={"admin": True}), "nothing else"),
    "3.10 right of operators": (lambda: minted(trunkline={"rights": ["operator"]}), "rights"),
    "3.11 typ no text": (lambda: minted(header={"typ": 1}), "`typ`"),
    "3.11 typ null": (lambda: minted(header={"typ": None}), "`typ`"),
    "3.11 typ empty": (lambda: minted(header={"typ": ""}), "`typ`"),
    "3.12 valid for ever": (lambda: minted(exp=...), "`exp`"),
    "3.12 valid for ten years": (lambda: minted(exp=NOW_S + 10 * 366 * 86400), "366 days"),
    "bound: one character too long": (lambda: "a" * 16385, "16384"),
    "bound: very long": (lambda: "." * 10_000_000, "16384"),
    "bound: many dots": (lambda: "." * 16384, "compact form"),
    "bound: nothing": (lambda: "", "compact form"),
}


def _eddsa_twin() -> bytes:
    """The same signature with the order of the group added to S (RFC 8032, 5.1.7)."""
    signature = from_base64url(minted("EdDSA").rpartition(".")[2])
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    return signature[:32] + s.to_bytes(32, "little")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str) -> None:
    attack, problem = ATTACKS[name]
    assert problem in refusal(attack())


@pytest.mark.parametrize(
    "kid", ["../../../etc/passwd", "' OR '1'='1", "https://evil.example", "ES256 ", "es256"]
)
def test_a_name_of_a_key_is_compared_and_nothing_else(kid: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        taken(minted(header={"kid": kid}))
    assert caught.value.kid == kid


@pytest.mark.parametrize("typ", [..., "JWT", "jwt", "at+jwt", "application/jwt", "application/at+JWT"])
def test_a_token_of_the_right_kind_is_taken(typ: object) -> None:
    assert taken(minted(header={"typ": typ})).user == "ann"


@pytest.mark.parametrize("name", ["x5t", "x5t#S256", "nonce", "https://example.com/x"])
def test_harmless_header_parameters_are_ignored(name: str) -> None:
    assert taken(minted(header={name: "abc"})).user == "ann"


def test_a_token_of_another_tenant_is_refused_even_with_the_same_names_of_keys() -> None:
    other = ECKey.generate_key("P-256")
    assert "signature is wrong" in refusal(signed(HEADER, CLAIMS, "ES256", other))


def test_a_key_that_was_taken_out_verifies_nothing() -> None:
    with pytest.raises(UnknownKey):
        taken(minted("ES256"), declared("RS256"))
    with pytest.raises(UnknownKey):
        taken(minted("ES256"), AUTH, KeySet())
    assert KEYS.identities > KeySet(KEYS.find(None, "ES256")).identities


def test_a_tenant_without_audiences_takes_no_token_that_is_meant_for_all() -> None:
    assert "`tenant`" in refusal(minted(), ClientAuth(keys=AUTH.keys))


def _off_the_curve() -> dict[str, Any]:
    return {**OWN_JWK, "y": to_base64url(bytes(31) + b"\7")}


BAD_KEYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "2.2 secret of 31 bytes": ("HS256", {"kty": "oct", "k": to_base64url(bytes(31))}, "at least 32"),
    "2.2 secret of no bytes": ("HS256", {"kty": "oct", "k": ""}, "at least 32"),
    "2.1 secret that is a PEM": ("HS256", {"kty": "oct", "k": to_base64url(RSA_PEM)}, "public key"),
    "2.1 secret that is a PEM after blanks": (
        "HS256",
        {"kty": "oct", "k": to_base64url(b" \n" + RSA_PEM)},
        "public key",
    ),
    "3.4 point that is not on the curve": ("ES256", _off_the_curve(), "not a valid EC key"),
    "3.4 point at zero": (
        "ES256",
        {**OWN_JWK, "x": to_base64url(bytes(32)), "y": to_base64url(bytes(32))},
        "not a valid EC key",
    ),
    "3.4 curve of another strength": (
        "ES256",
        ECKey.generate_key("P-384").as_dict(private=False),
        "`crv` P-256",
    ),
    "3.4 X25519": ("EdDSA", OKPKey.generate_key("X25519").as_dict(private=False), "`crv` Ed25519"),
    "3.5 RSA of 2040 bits": ("RS256", RSAKey.generate_key(2048).as_dict(private=False), "bits"),
}
BAD_KEYS["3.5 RSA of 2040 bits"][1]["n"] = to_base64url(b"\xff" * 255)


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_invites_attacks_is_refused(name: str) -> None:
    algorithm, members, problem = BAD_KEYS[name]
    with pytest.raises(ValueError, match=problem):
        check_jwk(algorithm, json.dumps(members))
