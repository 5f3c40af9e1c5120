"""Tokens for trying out, signed with a private key or a secret as a tenant's own backend would."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from trunkline.v1.tenant_pb2 import Tenant, VerificationKey
from trunkline_runtime.jose import read_object

from trunkline_router.cli.operator import CommandFailed

if TYPE_CHECKING:
    # Imported by the functions that need it: cryptography takes longer to import than most commands.
    from joserfc.jwk import Key


class Right(StrEnum):
    """What a token may allow."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    HISTORY = "history"
    CANCEL = "cancel"


@dataclass(frozen=True)
class TokenPermissions:
    """Options that say what the bearer may do; without them it is what the user may do."""

    agent: Annotated[list[str] | None, typer.Option(help="Only with this agent.")] = None
    platform: Annotated[list[str] | None, typer.Option(help="Only by this platform.")] = None
    conversation: Annotated[
        list[str] | None, typer.Option(help="Only in this one: person:<id> or group:<id>.")
    ] = None
    right: Annotated[list[Right] | None, typer.Option(help="Only this.")] = None

    def claim(self) -> dict[str, list[str]]:
        """The claim `trunkline`."""
        named = {
            "agents": self.agent,
            "platforms": self.platform,
            "conversations": self.conversation,
            "rights": self.right,
        }
        return {name: list(values) for name, values in named.items() if values}


class Signer(NamedTuple):
    """What tokens are signed with; an empty `kid` is not said."""

    kid: str
    algorithm: str
    key: Key

    def sign(self, claims: dict[str, Any]) -> str:
        """A token with these claims."""
        from joserfc import jwt
        from joserfc.errors import SecurityWarning

        header = {"alg": self.algorithm, "typ": "JWT", **({"kid": self.kid} if self.kid else {})}
        with warnings.catch_warnings():
            # Of the name EdDSA, which is what everybody understands.
            warnings.simplefilter("ignore", SecurityWarning)
            return jwt.encode(header, claims, self.key, algorithms=[self.algorithm])


def claims_of(tenant: Tenant, user: str, expires_s: int, allowed: TokenPermissions) -> dict[str, Any]:
    """The claims of a token that the tenant takes."""
    now_s, auth = int(time.time()), tenant.settings.client_auth
    claims: dict[str, Any] = {
        "sub": user,
        "tenant": tenant.tenant,
        "iat": now_s,
        "exp": now_s + expires_s,
        "jti": secrets.token_hex(8),
    }
    if auth.issuer:
        claims["iss"] = auth.issuer
    if auth.audiences:
        claims["aud"] = auth.audiences[0]
    if claim := allowed.claim():
        claims["trunkline"] = claim
    return claims


def signer_of_pem(pem: bytes, tenant: Tenant, kid: str) -> Signer:
    """Signs with a private key, under the name that its public key has at the tenant unless `kid` is given.

    Raises CommandFailed where the tenant has no such key.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    kinds: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {
        "RS256": RSAKey,
        "ES256": ECKey,
        "EdDSA": OKPKey,
    }
    for algorithm, kind in kinds.items():
        try:
            key = kind.import_key(pem)
        except (JoseError, ValueError, TypeError):
            continue
        if not key.is_private:
            raise CommandFailed("The file holds a public key; tokens are signed with the private one")
        public = key.as_dict(private=False)
        found = [each for each in _keys(tenant, algorithm) if _is(each, public, kind.value_registry)]
        return Signer(kid or _one(found, tenant, "belongs to this private key").kid, algorithm, key)
    raise CommandFailed("The file holds no private key (PEM) for RS256, ES256 or EdDSA")


def signer_of_secret(secret: bytes, tenant: Tenant, kid: str) -> Signer:
    """Signs with a secret, under the name of the tenant's one secret unless `kid` is given.

    Raises CommandFailed where the tenant has none, or several.
    """
    from joserfc.errors import SecurityWarning
    from joserfc.jwk import OctKey

    kid = kid or _one(_keys(tenant, "HS256"), tenant, "is for HS256").kid
    with warnings.catch_warnings():
        # Of short secrets, which no tenant can have.
        warnings.simplefilter("ignore", SecurityWarning)
        return Signer(kid, "HS256", OctKey.import_key(secret))


def _keys(tenant: Tenant, algorithm: str) -> list[VerificationKey]:
    return [key for key in tenant.settings.client_auth.keys if key.algorithm == algorithm]


def _is(key: VerificationKey, public: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether it is this public key; a tenant's JWK may say more of it than what it is made of."""
    known = read_object(key.jwk)
    return all(known.get(name) == public.get(name) for name in names if name in public)


def _one(keys: Sequence[VerificationKey], tenant: Tenant, that: str) -> VerificationKey:
    if len(keys) == 1:
        return keys[0]
    if keys:
        names = ", ".join(key.kid for key in keys)
        raise CommandFailed(f"{tenant.tenant} has several signing keys of which each {that}: --kid {names}?")
    raise CommandFailed(
        f"{tenant.tenant} has no signing key that {that}; `signing-key add` gives it one, and --kid names"
        " one that is elsewhere"
    )
