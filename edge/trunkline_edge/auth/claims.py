"""The claims of a token whose signature is verified, read into a Principal (RFC 7519, 4)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_runtime.allowed_addresses import AllowedAddresses
from trunkline_runtime.jose import read_object

from trunkline_edge.auth import langbot_claims
from trunkline_edge.auth.jws import unauthorized
from trunkline_edge.auth.principal import RIGHTS, Principal

#: Between a user and the user's chat in a conversation's id; see `trunkline_edge.auth.user_chats`.
CHAT_SEPARATOR = "»"
#: Tolerated skew of an issuer's clock ahead of this one.
LEEWAY_S = 30
#: Longest validity of a token; revocations are kept for as long.
MAX_VALIDITY_S = 366 * 24 * 3600
#: The last second of the year 9999.
MAX_TIME_S = 253_402_300_799

MAX_TOKEN_ID_CHARACTERS = 256
#: Items of one list in the `trunkline` claim.
MAX_ITEMS = 1024

_ID = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")
_LINE = re.compile(rf"[^\x00-\x1f\x7f-\x9f]{{1,{MAX_TOKEN_ID_CHARACTERS}}}")
_ID_RULE = "1 to 128 characters without white space, control characters, '/' and ':'"

#: Members that the `trunkline` claim may have.
_MEMBERS = frozenset({"agents", "platforms", "conversations", "rights"})


def is_id(text: str) -> bool:
    """Whether a text is a valid id in the contract, such as a tenant or a user."""
    return _ID.fullmatch(text) is not None


class TokenLifetime(NamedTuple):
    """The times of issue, if claimed, and of expiry, in seconds since 1970."""

    issued_at_s: float | None
    expires_at_s: float


def principal_of(payload: bytes, tenant: str, auth: ClientAuth, key: str, now_s: float) -> Principal:
    """The principal that a verified payload names.

    `key` is the identity of the key that verified it. Raises Refused UNAUTHORIZED, or TOKEN_EXPIRED if the
    token is valid but for its age.
    """
    try:
        claims = read_object(payload)
    except ValueError as error:
        raise unauthorized(f"the token's payload {error}") from None
    _check_recipient(claims, tenant, auth)
    lifetime = _lifetime(claims, now_s)
    principal = _read(claims, lifetime, key)
    if lifetime.expires_at_s <= now_s:
        raise catalogue.TOKEN_EXPIRED.refused()
    return principal


def _read(claims: dict[str, Any], lifetime: TokenLifetime, key: str) -> Principal:
    user = _string(claims, "sub", _ID, _ID_RULE) or ""
    is_langbot = langbot_claims.is_langbot(claims)
    if is_langbot and not user:
        # A token of before the account was stored.
        user = _string(claims, "user", _ID, _ID_RULE) or ""
    token_id = _string(claims, "jti", _LINE, f"1 to {MAX_TOKEN_ID_CHARACTERS} printable characters") or ""
    own = claims.get("trunkline", {})
    if not isinstance(own, dict):
        raise unauthorized("the token's `trunkline` must be an object")
    if not _MEMBERS.issuperset(own):
        raise unauthorized(f"the token's `trunkline` may have {', '.join(sorted(_MEMBERS))} and nothing else")
    persons, groups = _conversations(own, user)
    rights = _strings(own, "rights")
    if rights is not None and not RIGHTS.keys() >= rights:
        raise unauthorized(f"the token's `trunkline.rights` may hold {', '.join(RIGHTS)} and nothing else")
    addresses = AllowedAddresses(_ids(own, "agents"), _ids(own, "platforms"), persons, groups)
    return Principal(
        user=user,
        addresses=langbot_claims.ADDRESSES if is_langbot else addresses,
        rights=frozenset(RIGHTS.values() if rights is None else map(RIGHTS.__getitem__, rights)),
        token_id=token_id,
        issued_at_s=lifetime.issued_at_s,
        expires_at_s=lifetime.expires_at_s,
        key=key,
        manages=langbot_claims.MANAGED if is_langbot else "",
    )


def _check_recipient(claims: dict[str, Any], tenant: str, auth: ClientAuth) -> None:
    """Raises Refused unless a trusted issuer issued the token for this tenant."""
    issuer = claims.get("iss")
    if auth.issuer and issuer != auth.issuer:
        raise unauthorized(f"the token was issued by {_excerpt(issuer)}, not by {auth.issuer}")
    if "tenant" in claims:
        if claims["tenant"] != tenant:
            raise unauthorized(f"the token is for tenant {_excerpt(claims['tenant'])}, not for {tenant}")
    elif not auth.audiences:
        raise unauthorized("the token must have a `tenant` claim, because the tenant sets no audiences")
    if auth.audiences:
        _check_audience(claims.get("aud"), auth.audiences)


def _check_audience(claimed: object, audiences: Collection[str]) -> None:
    named = claimed if isinstance(claimed, list) else [claimed]
    if not all(isinstance(each, str) for each in named):
        raise unauthorized("the token's audience, `aud`, must be a string or a list of strings")
    if not any(each in audiences for each in named):
        excerpt = " or ".join(map(_excerpt, named[:4])) or "nobody"
        raise unauthorized(f"the token is for audience {excerpt}, not for {' or '.join(audiences)}")


def _lifetime(claims: dict[str, Any], now_s: float) -> TokenLifetime:
    """Raises Refused UNAUTHORIZED for malformed times, and for a token not valid yet or for too long."""
    expires_at_s = _time(claims, "exp")
    if expires_at_s is None:
        raise unauthorized("the token has no `exp`; it must expire")
    if expires_at_s > now_s + MAX_VALIDITY_S:
        raise unauthorized("the token's `exp` is more than 366 days ahead")
    issued_at_s, valid_from_s = _time(claims, "iat"), _time(claims, "nbf")
    if issued_at_s is not None and issued_at_s > now_s + LEEWAY_S:
        raise unauthorized("the token's `iat` is in the future; is a clock wrong?")
    if valid_from_s is not None and valid_from_s > now_s + LEEWAY_S:
        raise unauthorized("the token is not valid yet: its `nbf` is in the future")
    return TokenLifetime(issued_at_s, expires_at_s)


def _time(claims: dict[str, Any], name: str) -> float | None:
    """A NumericDate, in seconds since 1970 (RFC 7519, 2); None if the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    # A bool is an int. NaN and infinity fail the comparison.
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIME_S:
        raise unauthorized(f"the token's `{name}` must be a number of seconds since 1970")
    return float(value)


def _string(claims: dict[str, Any], name: str, pattern: re.Pattern[str], rule: str) -> str | None:
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise unauthorized(f"the token's `{name}` must be a string of {rule}")
    return value


def _strings(own: dict[str, Any], name: str) -> frozenset[str] | None:
    """A list of strings in the `trunkline` claim; None if absent."""
    if name not in own:
        return None
    values = own[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise unauthorized(f"the token's `trunkline.{name}` must be a list of strings")
    if len(values) > MAX_ITEMS:
        raise unauthorized(f"the token's `trunkline.{name}` has more than {MAX_ITEMS} items")
    return frozenset(values)


def _ids(own: dict[str, Any], name: str) -> frozenset[str] | None:
    ids = _strings(own, name)
    if ids is not None and not all(map(_ID.fullmatch, ids)):
        raise unauthorized(f"the token's `trunkline.{name}` must hold ids: {_ID_RULE}")
    return ids


def _conversations(own: dict[str, Any], user: str) -> tuple[frozenset[str], frozenset[str] | None]:
    """Ids of persons, and of groups; groups are None if any may be joined.

    A user whose id reads like another user's chat has no conversation unless the token names it.
    """
    named = _strings(own, "conversations")
    if named is None:
        return frozenset({user} if user and CHAT_SEPARATOR not in user else ()), None
    ids: dict[str, set[str]] = {"person": set(), "group": set()}
    for each in named:
        kind, _, ident = each.partition(":")
        if kind not in ids or not _ID.fullmatch(ident):
            raise unauthorized("the token's `trunkline.conversations` must hold person:<id> or group:<id>")
        ids[kind].add(ident)
    return frozenset(ids["person"]), frozenset(ids["group"])


def _excerpt(claimed: object) -> str:
    """A claim in the text of a refusal."""
    return claimed[:64] if isinstance(claimed, str) and claimed else "nobody"
