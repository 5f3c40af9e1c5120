"""Signs tokens for trials, as a tenant's own backend would."""

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

from trunkline_router.cli.operator_client import CommandFailed

if TYPE_CHECKING:
    # Imported by the functions that need it: cryptography takes longer to import than most commands.
    from joserfc.jwk import Key


class TokenRight(StrEnum):
    """Rights that a token may grant."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    HISTORY = "history"
    CANCEL = "cancel"


@dataclass(frozen=True)
class TokenPermissions:
    """Options that restrict the token; without them its bearer has all rights of the user."""

    agent: Annotated[list[str] | None, typer.Option(help="Restrict the token to this agent. Repeatable.")] = (
        None
    )
    platform: Annotated[
        list[str] | None, typer.Option(help="Restrict the token to this platform. Repeatable.")
    ] = None
    conversation: Annotated[
        list[str] | None,
        typer.Option(help="Restrict the token to this conversation: person:ID or group:ID. Repeatable."),
    ] = None
    right: Annotated[
        list[TokenRight] | None, typer.Option(help="Restrict the token to this right. Repeatable.")
    ] = None

    def claim(self) -> dict[str, list[str]]:
        """The value of the claim `trunkline`."""
        named = {
            "agents": self.agent,
            "platforms": self.platform,
            "conversations": self.conversation,
            "rights": self.right,
        }
        return {name: list(values) for name, values in named.items() if values}


class Signer(NamedTuple):
    """A key that signs tokens; an empty `kid` is left out of their header."""

    kid: str
    algorithm: str
    key: Key

    def sign(self, claims: dict[str, Any]) -> str:
        """Sign a token with these claims."""
        from joserfc import jwt
        from joserfc.errors import SecurityWarning

        header = {"alg": self.algorithm, "typ": "JWT", **({"kid": self.kid} if self.kid else {})}
        with warnings.catch_warnings():
            # joserfc warns of the name EdDSA, which every verifier understands.
            warnings.simplefilter("ignore", SecurityWarning)
            return jwt.encode(header, claims, self.key, algorithms=[self.algorithm])


def claims_of(tenant: Tenant, user: str, expires_s: int, permissions: TokenPermissions) -> dict[str, Any]:
    """The claims of a token that the tenant accepts."""
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
    if claim := permissions.claim():
        claims["trunkline"] = claim
    return claims


def signer_of_pem(pem: bytes, tenant: Tenant, kid: str) -> Signer:
    """Make a signer of a private key. Its `kid` is by default that of the tenant's matching public key.

    Raises CommandFailed if the PEM is unusable or the tenant has no matching key.
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
            raise CommandFailed("The file holds a public key; signing takes the private key")
        public = key.as_dict(private=False)
        found = [each for each in _keys(tenant, algorithm) if _matches(each, public, kind.value_registry)]
        return Signer(kid or _only(found, tenant, "belongs to this private key").kid, algorithm, key)
    raise CommandFailed("The file holds no private key (PEM) for RS256, ES256 or EdDSA")


def signer_of_secret(secret: bytes, tenant: Tenant, kid: str) -> Signer:
    """Make a signer of a secret. Its `kid` is by default that of the tenant's one key for HS256.

    Raises CommandFailed if the tenant has none or several.
    """
    from joserfc.errors import SecurityWarning
    from joserfc.jwk import OctKey

    kid = kid or _only(_keys(tenant, "HS256"), tenant, "is for HS256").kid
    with warnings.catch_warnings():
        # joserfc warns of short secrets, which tenants cannot have.
        warnings.simplefilter("ignore", SecurityWarning)
        return Signer(kid, "HS256", OctKey.import_key(secret))


def _keys(tenant: Tenant, algorithm: str) -> list[VerificationKey]:
    return [key for key in tenant.settings.client_auth.keys if key.algorithm == algorithm]


def _matches(key: VerificationKey, public: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a tenant's key is this public key; its JWK may have further members."""
    known = read_object(key.jwk)
    return all(known.get(name) == public.get(name) for name in names if name in public)


def _only(keys: Sequence[VerificationKey], tenant: Tenant, that: str) -> VerificationKey:
    if len(keys) == 1:
        return keys[0]
    if keys:
        names = ", ".join(key.kid for key in keys)
        raise CommandFailed(
            f"{tenant.tenant} has several signing keys that could sign; choose one with --kid: {names}"
        )
    raise CommandFailed(
        f"{tenant.tenant} has no signing key that {that}. Add one with `signing-key add`, or name a key of"
        " the tenant's JWK Set with --kid"
    )
