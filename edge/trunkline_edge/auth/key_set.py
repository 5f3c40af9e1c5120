"""Sets of keys that verify tokens: a tenant's own keys, and JWK Sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from joserfc import jwk
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_runtime.jose import read_object
from trunkline_runtime.jwk import key_of, key_of_members

#: Bounds of a JWK Set; a larger one is rejected.
MAX_KEYS = 64
MAX_SET_BYTES = 256 * 1024

MAX_KID_CHARACTERS = 128

#: The algorithm of a key in a JWK Set, by key type. No symmetric keys: a set is public.
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


class VerificationKey(NamedTuple):
    """A key with its name and algorithm."""

    #: The key's name; empty if a JWK Set gives none.
    kid: str
    #: The only algorithm that the key verifies.
    algorithm: str
    #: Name and thumbprint (RFC 7638): equal exactly if both are.
    identity: str
    key: jwk.Key


class KeySet:
    """An immutable set of keys, indexed by name and by algorithm."""

    __slots__ = ("_by_algorithm", "_by_kid", "identities")

    def __init__(self, keys: Iterable[VerificationKey] = ()) -> None:
        self._by_kid: dict[str, list[VerificationKey]] = {}
        self._by_algorithm: dict[str, list[VerificationKey]] = {}
        for key in {key.identity: key for key in keys}.values():
            self._by_kid.setdefault(key.kid, []).append(key)
            self._by_algorithm.setdefault(key.algorithm, []).append(key)
        self.identities = frozenset(key.identity for key in self)

    def find(self, kid: str | None, algorithm: str) -> Sequence[VerificationKey]:
        """The keys of this name and algorithm; without a name all keys of the algorithm."""
        if kid is None:
            return self._by_algorithm.get(algorithm, ())
        return [key for key in self._by_kid.get(kid, ()) if key.algorithm == algorithm]

    def __contains__(self, kid: str) -> bool:
        """Whether there is a key of this name, for any algorithm."""
        return kid in self._by_kid

    def __or__(self, other: KeySet) -> KeySet:
        """The union. Cheap if either is empty, the usual case."""
        if not self.identities or not other.identities:
            return self if self.identities else other
        return KeySet([*self, *other])

    def __iter__(self) -> Iterator[VerificationKey]:
        for keys in self._by_algorithm.values():
            yield from keys

    def __len__(self) -> int:
        return sum(map(len, self._by_algorithm.values()))

    def __repr__(self) -> str:
        return f"<KeySet {', '.join(f'{key.kid} ({key.algorithm})' for key in self)}>"


def inline_keys(auth: ClientAuth) -> KeySet:
    """A tenant's own keys. Raises ValueError, without secrets, if one does not fit its algorithm."""
    return KeySet(map(_own_key, auth.keys))


def _own_key(declared: Any) -> VerificationKey:
    try:
        key = key_of(declared.algorithm, declared.jwk)
    except ValueError as error:
        raise ValueError(f"key {declared.kid}: {error}") from None
    return _named(declared.kid, declared.algorithm, key)


def _named(kid: str, algorithm: str, key: jwk.Key) -> VerificationKey:
    # A thumbprint has no blank and a fixed length, so a name cannot imitate another key's identity.
    return VerificationKey(kid, algorithm, f"{kid} {key.thumbprint()}", key)


def read_jwk_set(body: bytes) -> KeySet:
    """The keys of a JWK Set (RFC 7517, 5) that can verify tokens; others are ignored.

    Raises ValueError for a malformed or too large set.
    """
    if len(body) > MAX_SET_BYTES:
        raise ValueError(f"the JWK Set has more than {MAX_SET_BYTES} bytes")
    try:
        found = read_object(body).get("keys")
    except ValueError as error:
        raise ValueError(f"the JWK Set {error}") from None
    if not isinstance(found, list):
        raise ValueError("the JWK Set has no list `keys`")
    if len(found) > MAX_KEYS:
        raise ValueError(f"the JWK Set has {len(found)} keys; at most {MAX_KEYS} are allowed")
    return KeySet(key for members in found if (key := _key_of_set(members)) is not None)


def _key_of_set(members: object) -> VerificationKey | None:
    if not isinstance(members, Mapping):
        return None
    kid, kind = members.get("kid", ""), members.get("kty")
    if not isinstance(kid, str) or len(kid) > MAX_KID_CHARACTERS or not isinstance(kind, str):
        return None
    algorithm = _ALGORITHMS.get(kind)
    if algorithm is None:
        return None
    try:
        return _named(kid, algorithm, key_of_members(algorithm, members))
    except ValueError:
        return None
