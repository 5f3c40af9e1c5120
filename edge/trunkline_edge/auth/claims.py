"""What a token says of its bearer, once its signature was verified (RFC 7519, 4)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_runtime.jose import read_object

from trunkline_edge.auth.jws import unauthorized
from trunkline_edge.auth.principal import RIGHTS, Principal

#: How far another clock may be ahead of this one.
LEEWAY_S = 30
#: No token is valid for longer; what was revoked is kept as long.
MAX_VALIDITY_S = 366 * 24 * 3600
#: The last second of the year 9999.
MAX_TIME_S = 253_402_300_799

MAX_TOKEN_ID_CHARACTERS = 256
#: Of one list in the claim `trunkline`.
MAX_ITEMS = 1024

_ID = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")
_LINE = re.compile(rf"[^\x00-\x1f\x7f-\x9f]{{1,{MAX_TOKEN_ID_CHARACTERS}}}")
_ID_RULE = "1 to 128 characters without white space, control characters, '/' and ':'"

#: The members of the claim `trunkline`.
_MEMBERS = frozenset({"agents", "platforms", "conversations", "rights"})


def is_id(text: str) -> bool:
    """Whether it can be an id of the contract's, such as a tenant's or a user's."""
    return _ID.fullmatch(text) is not None


class TokenLifetime(NamedTuple):
    """When a token was issued, if it says so, and when it expires."""

    issued_at_s: float | None
    expires_at_s: float


def principal_of(payload: bytes, tenant: str, auth: ClientAuth, key: str, now_s: float) -> Principal:
    """Who shows a token with this payload to the tenant, and what it allows.

    `key` is the identity of the key that it was verified with. Raises Refused UNAUTHORIZED, or TOKEN_EXPIRED
    where nothing but its age is wrong.
    """
    try:
        claims = read_object(payload)
    except ValueError as error:
        raise unauthorized(f"the token's payload {error}") from None
    _check_meant(claims, tenant, auth)
    times = _times_of(claims, now_s)
    bearer = _read(claims, times, key)
    if times.expires_at_s <= now_s:
        raise catalogue.TOKEN_EXPIRED.refused()
    return bearer


def _read(claims: dict[str, Any], times: TokenLifetime, key: str) -> Principal:
    user = _text(claims, "sub", _ID, _ID_RULE) or ""
    token_id = _text(claims, "jti", _LINE, f"1 to {MAX_TOKEN_ID_CHARACTERS} printable characters") or ""
    own = claims.get("trunkline", {})
    if not isinstance(own, dict):
        raise unauthorized("the token's `trunkline` must be an object")
    if not _MEMBERS.issuperset(own):
        raise unauthorized(f"the token's `trunkline` may have {', '.join(sorted(_MEMBERS))} and nothing else")
    persons, groups = _conversations(own, user)
    rights = _texts(own, "rights")
    if rights is not None and not RIGHTS.keys() >= rights:
        raise unauthorized(f"the token's `trunkline.rights` may hold {', '.join(RIGHTS)} and nothing else")
    return Principal(
        user=user,
        agents=_ids(own, "agents"),
        platforms=_ids(own, "platforms"),
        persons=persons,
        groups=groups,
        rights=frozenset(RIGHTS.values() if rights is None else map(RIGHTS.__getitem__, rights)),
        token_id=token_id,
        issued_at_s=times.issued_at_s,
        expires_at_s=times.expires_at_s,
        key=key,
    )


def _check_meant(claims: dict[str, Any], tenant: str, auth: ClientAuth) -> None:
    """It was issued by whom the tenant trusts, and for this tenant."""
    issuer = claims.get("iss")
    if auth.issuer and issuer != auth.issuer:
        raise unauthorized(f"the token was issued by {_shown(issuer)}, and not by {auth.issuer}")
    if "tenant" in claims:
        if claims["tenant"] != tenant:
            raise unauthorized(f"the token is for tenant {_shown(claims['tenant'])}, and not for {tenant}")
    elif not auth.audiences:
        raise unauthorized("the token must have the claim `tenant`, as the tenant has no audiences")
    if auth.audiences:
        _check_audience(claims.get("aud"), auth.audiences)


def _check_audience(claimed: object, audiences: Collection[str]) -> None:
    named = claimed if isinstance(claimed, list) else [claimed]
    if not all(isinstance(each, str) for each in named):
        raise unauthorized("the token must have an audience, `aud`: a text or a list of texts")
    if not any(each in audiences for each in named):
        shown = " or ".join(map(_shown, named[:4])) or "nobody"
        raise unauthorized(f"the token is for audience {shown}, and not for {' or '.join(audiences)}")


def _times_of(claims: dict[str, Any], now_s: float) -> TokenLifetime:
    """Raises Refused UNAUTHORIZED where they are no times, or the token is not valid yet or for too long."""
    expires_at_s = _time(claims, "exp")
    if expires_at_s is None:
        raise unauthorized("the token must expire: it has no `exp`")
    if expires_at_s > now_s + MAX_VALIDITY_S:
        raise unauthorized("the token's `exp` is more than 366 days ahead")
    issued_at_s, valid_from_s = _time(claims, "iat"), _time(claims, "nbf")
    if issued_at_s is not None and issued_at_s > now_s + LEEWAY_S:
        raise unauthorized("the token's `iat` is in the future; is a clock wrong?")
    if valid_from_s is not None and valid_from_s > now_s + LEEWAY_S:
        raise unauthorized("the token is not valid yet: its `nbf` is in the future")
    return TokenLifetime(issued_at_s, expires_at_s)


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Seconds since 1970, as a NumericDate says (RFC 7519, 2); None where the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    # A bool is an int. What is not finite fails to compare.
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIME_S:
        raise unauthorized(f"the token's `{name}` must be a number of seconds since 1970")
    return float(value)


def _text(claims: dict[str, Any], name: str, pattern: re.Pattern[str], rule: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise unauthorized(f"the token's `{name}` must be a text of {rule}")
    return value


def _texts(own: dict[str, Any], name: str) -> frozenset[str] | None:
    """A list of texts in the claim `trunkline`; None where it is absent."""
    if name not in own:
        return None
    values = own[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise unauthorized(f"the token's `trunkline.{name}` must be a list of texts")
    if len(values) > MAX_ITEMS:
        raise unauthorized(f"the token's `trunkline.{name}` has more than {MAX_ITEMS} items")
    return frozenset(values)


def _ids(own: dict[str, Any], name: str) -> frozenset[str] | None:
    ids = _texts(own, name)
    if ids is not None and not all(map(_ID.fullmatch, ids)):
        raise unauthorized(f"the token's `trunkline.{name}` must hold ids: {_ID_RULE}")
    return ids


def _conversations(own: dict[str, Any], user: str) -> tuple[frozenset[str], frozenset[str] | None]:
    """Ids of persons and of groups; of groups None for any."""
    named = _texts(own, "conversations")
    if named is None:
        return frozenset({user} if user else ()), None
    ids: dict[str, set[str]] = {"person": set(), "group": set()}
    for each in named:
        kind, _, ident = each.partition(":")
        if kind not in ids or not _ID.fullmatch(ident):
            raise unauthorized("the token's `trunkline.conversations` must hold person:<id> or group:<id>")
        ids[kind].add(ident)
    return frozenset(ids["person"]), frozenset(ids["group"])


def _shown(claimed: object) -> str:
    """A claim as a refusal shows it."""
    return claimed[:64] if isinstance(claimed, str) and claimed else "nobody"
