"""What a client's token allows, as the router keeps it for each connection that has shown one."""

from __future__ import annotations

from typing import NamedTuple, Self

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
    Grants,
    Right,
)

#: The right that a client's frame needs, by its name; others need none.
NEEDED: dict[str, Right.ValueType] = {
    "message": RIGHT_PUBLISH,
    "signal": RIGHT_PUBLISH,
    "edit": RIGHT_PUBLISH,
    "recall": RIGHT_PUBLISH,
    "subscribe": RIGHT_SUBSCRIBE,
    "read": RIGHT_SUBSCRIBE,
    "delivered": RIGHT_SUBSCRIBE,
    "history": RIGHT_HISTORY,
    "cancel": RIGHT_CANCEL,
}
_WORDS = {
    RIGHT_PUBLISH: "publish",
    RIGHT_SUBSCRIBE: "subscribe",
    RIGHT_HISTORY: "history",
    RIGHT_CANCEL: "cancel",
}


class Permissions(NamedTuple):
    """Grants, ready to be asked."""

    rights: frozenset[int]
    #: Groups that may be joined; None for any.
    groups: frozenset[str] | None
    token_id: str
    #: 0 where the token does not say when it was issued.
    issued_ms: int
    #: 0 where it does not expire.
    expires_ms: int

    @classmethod
    def of(cls, grants: Grants) -> Self:
        """What they allow."""
        return cls(
            frozenset(grants.rights),
            None if grants.all_groups else frozenset(grants.groups),
            grants.token_id,
            grants.issued_at.ToMilliseconds() if grants.HasField("issued_at") else 0,
            grants.expires_at.ToMilliseconds() if grants.HasField("expires_at") else 0,
        )

    @property
    def may_hear(self) -> bool:
        """It may hear topics."""
        return RIGHT_SUBSCRIBE in self.rights

    def check_frame(self, kind: str) -> None:
        """Raises Refused FORBIDDEN where a frame of this kind is not allowed."""
        needed = NEEDED.get(kind)
        if needed is not None and needed not in self.rights:
            raise catalogue.FORBIDDEN.refused(
                problem=f"the token does not give the right to {_WORDS[needed]}"
            )

    def may_join(self, group: str) -> bool:
        """Whether a group may be joined."""
        return self.groups is None or group in self.groups
