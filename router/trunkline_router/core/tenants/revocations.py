"""Revoked tokens of one tenant's clients."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import Revocation

from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.stored_records import RevocationKind, StoredRevocation

#: Older revocations are dropped: edges accept no token whose lifetime is longer.
RETENTION_MS = 366 * 24 * 3600 * 1000

#: Bound of one tenant's revocations.
MAX_REVOCATIONS = 100_000


class Revocations:
    """A tenant's revocations, by kind and name; at most MAX_REVOCATIONS."""

    __slots__ = ("_revocations",)

    def __init__(self) -> None:
        self._revocations: dict[tuple[RevocationKind, str], StoredRevocation] = {}

    def add(self, revocation: StoredRevocation) -> None:
        """Add a revocation; it replaces one of the same kind and name."""
        self._revocations[revocation.kind, revocation.name] = revocation

    def check_room(self) -> None:
        """Raise Refused OVERLOADED if no revocation may be added."""
        if len(self._revocations) >= MAX_REVOCATIONS:
            problem = f"the tenant has {MAX_REVOCATIONS} revocations; revoke all tokens, or those of a user"
            raise catalogue.OVERLOADED.refused(problem=problem)

    def prune(self, revoked_before_ms: int) -> None:
        """Drop revocations made before this time."""
        found = self._revocations
        for key in [key for key, each in found.items() if each.revoked_ms < revoked_before_ms]:
            del found[key]

    def revokes(self, user: str, permissions: Permissions | None) -> bool:
        """Return whether the user's token with these permissions is revoked; False without a token."""
        if permissions is None or not self._revocations:
            return False
        for name in ((RevocationKind.ALL, ""), (RevocationKind.USER, user)):
            found = self._revocations.get(name)
            if found is not None and permissions.issued_ms < found.issued_before_ms:
                return True
        token_id = permissions.token_id
        return bool(token_id) and (RevocationKind.TOKEN_ID, token_id) in self._revocations

    @property
    def revoke_secrets(self) -> bool:
        """The secrets that the tenant's clients share are revoked: they have no time of issue."""
        return (RevocationKind.ALL, "") in self._revocations

    def page(self, after: tuple[int, str], limit: int) -> list[StoredRevocation]:
        """Return up to `limit` revocations after a kind and name, in that order."""
        keys = sorted(key for key in self._revocations if key > after)
        return [self._revocations[key] for key in keys[:limit]]

    def __len__(self) -> int:
        return len(self._revocations)


def to_proto(revocation: StoredRevocation) -> Revocation:
    """Return the revocation as a message of the contract."""
    proto = Revocation()
    if revocation.kind is RevocationKind.USER:
        proto.user = revocation.name
    elif revocation.kind is RevocationKind.TOKEN_ID:
        proto.token_id = revocation.name
    else:
        proto.all = True
    if revocation.issued_before_ms:
        proto.issued_before.FromMilliseconds(revocation.issued_before_ms)
    proto.revoked_at.FromMilliseconds(revocation.revoked_ms)
    return proto
