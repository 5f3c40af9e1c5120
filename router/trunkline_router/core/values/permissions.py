"""Permissions of a connection, from the token that its client presented."""

from __future__ import annotations

from typing import NamedTuple, Self

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import RIGHT_SUBSCRIBE, RIGHT_UNSPECIFIED, Grants, Right
from trunkline.v1.frames import CLIENT_FRAMES, RIGHTS

_RIGHT_OF_FRAME = {
    kind: rule.right for kind, rule in CLIENT_FRAMES.items() if rule.right != RIGHT_UNSPECIFIED
}
_RIGHT_NAMES = {right: name for name, right in RIGHTS.items()}


class Permissions(NamedTuple):
    """The grants of one token, in a form that is quick to check."""

    rights: frozenset[int]
    #: Groups that the connection may join; None for any.
    groups: frozenset[str] | None
    token_id: str
    #: 0 if the token has no issue time.
    issued_ms: int
    #: 0 if the token does not expire.
    expires_ms: int

    @classmethod
    def from_grants(cls, grants: Grants) -> Self:
        """Permissions from the grants that an edge found in a token."""
        return cls(
            frozenset(grants.rights),
            None if grants.all_groups else frozenset(grants.groups),
            grants.token_id,
            grants.issued_at.ToMilliseconds() if grants.HasField("issued_at") else 0,
            grants.expires_at.ToMilliseconds() if grants.HasField("expires_at") else 0,
        )

    @property
    def may_subscribe(self) -> bool:
        """The connection may subscribe to topics."""
        return RIGHT_SUBSCRIBE in self.rights

    def check_frame(self, kind: str) -> None:
        """Raise Refused FORBIDDEN if the connection may not send client frames of this kind."""
        right = _RIGHT_OF_FRAME.get(kind)
        if right is not None:
            self.check_right(right)

    def check_right(self, right: Right.ValueType) -> None:
        """Raise Refused FORBIDDEN unless the token grants this right."""
        if right not in self.rights:
            problem = f"the token does not grant the right to {_RIGHT_NAMES[right]}"
            raise catalogue.FORBIDDEN.refused(problem=problem)

    def may_join(self, group: str) -> bool:
        """Return whether the connection may join the group."""
        return self.groups is None or group in self.groups
