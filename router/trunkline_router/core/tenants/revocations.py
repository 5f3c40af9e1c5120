"""Tokens of one tenant's clients that were taken back."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import Revocation

from trunkline_router.core.values.log_records import RevocationKind, StoredRevocation
from trunkline_router.core.values.permissions import Permissions

#: No token is valid for longer, see edge/auth, so what is older is forgotten.
KEPT_MS = 366 * 24 * 3600 * 1000

#: What one tenant may have revoked; more is refused.
MOST = 100_000


class Revocations:
    """What was revoked, by kind and name."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[RevocationKind, str], StoredRevocation] = {}

    def add(self, revocation: StoredRevocation) -> None:
        """In place of one of the same kind and name."""
        self._kept[revocation.kind, revocation.name] = revocation

    def check_room(self) -> None:
        """Raises Refused OVERLOADED where there is no room for another one."""
        if len(self._kept) >= MOST:
            raise catalogue.OVERLOADED.refused(problem=f"{MOST} revocations are kept; revoke all, or by user")

    def forget(self, revoked_before_ms: int) -> None:
        """Those made before this time are over."""
        kept = self._kept
        for key in [key for key, each in kept.items() if each.revoked_ms < revoked_before_ms]:
            del kept[key]

    def revokes(self, user: str, allowed: Permissions | None) -> bool:
        """Whether a token of this user, from which `allowed` was read, was taken back. No token: never."""
        if allowed is None or not self._kept:
            return False
        names = [(RevocationKind.ALL, ""), (RevocationKind.USER, user)]
        for name in names:
            found = self._kept.get(name)
            if found is not None and allowed.issued_ms < found.issued_before_ms:
                return True
        return bool(allowed.token_id) and (RevocationKind.TOKEN_ID, allowed.token_id) in self._kept

    def page(self, after: tuple[int, str], limit: int) -> list[StoredRevocation]:
        """Some of them, in order of kind and name."""
        return [self._kept[key] for key in sorted(key for key in self._kept if key > after)[:limit]]

    def __len__(self) -> int:
        return len(self._kept)


def to_proto(revocation: StoredRevocation) -> Revocation:
    """The contract's form."""
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
