"""The principal of a verified token: user, permitted addresses and rights."""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    RIGHT_CANCEL,
    RIGHT_HISTORY,
    RIGHT_PUBLISH,
    RIGHT_SUBSCRIBE,
    Grants,
    Right,
    TokenHolder,
)
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_runtime.allowed_addresses import AllowedAddresses

#: Rights by their names in tokens.
RIGHTS: dict[str, Right.ValueType] = {
    "publish": RIGHT_PUBLISH,
    "subscribe": RIGHT_SUBSCRIBE,
    "history": RIGHT_HISTORY,
    "cancel": RIGHT_CANCEL,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a verified token, or of a secret that a tenant's clients share."""

    #: Empty if the token names no user.
    user: str
    #: Addresses that the holder may connect to; any of the groups may also be joined later.
    addresses: AllowedAddresses
    rights: frozenset[Right.ValueType]
    #: Empty if the token has none.
    token_id: str
    #: Seconds since 1970; None if the token does not say.
    issued_at_s: float | None
    #: Seconds since 1970; None if the principal does not expire.
    expires_at_s: float | None
    #: Identity of the key that verified the token.
    key: str
    #: The client may name any user.
    any_user: bool = False
    #: The dialect that the holder manages; empty for none. Its HTTP routes serve the holder like one of a
    #: secret that the tenant's clients share.
    manages: str = ""

    def grants(self) -> Grants:
        """The permissions as the contract carries them to the router."""
        grants = Grants(
            rights=sorted(self.rights),
            all_groups=self.addresses.groups is None,
            groups=sorted(self.addresses.groups or ()),
            token_id=self.token_id,
        )
        # Rounded down: never valid for longer, never issued later than claimed.
        if self.expires_at_s is not None:
            grants.expires_at.FromMilliseconds(int(self.expires_at_s * 1000))
        if self.issued_at_s is not None:
            grants.issued_at.FromMilliseconds(int(self.issued_at_s * 1000))
        return grants

    def holder(self, tenant: str) -> TokenHolder:
        """The holder of a token, verified for this tenant, as an edge names them in calls to the router."""
        addresses = self.addresses
        return TokenHolder(
            tenant=tenant,
            user=self.user,
            grants=self.grants(),
            all_agents=addresses.agents is None,
            agents=sorted(addresses.agents or ()),
            all_platforms=addresses.platforms is None,
            platforms=sorted(addresses.platforms or ()),
            persons=sorted(addresses.persons or ()),
        )

    def authorize(self, opened: ConnectionOpened, names_user: bool = True) -> None:
        """Raises Refused FORBIDDEN unless the client may connect as this user to this address.

        The user is checked only if `names_user`. The tenant is not checked: the token was verified for it.
        """
        if names_user and not self.any_user and opened.user not in ("", self.user):
            whom = f"user {self.user}" if self.user else "no user"
            raise _forbidden(f"the token is for {whom}, not for user {opened.user[:128]}")
        problem = self.addresses.problem_with(opened.address)
        if problem:
            raise _forbidden(problem)


def _forbidden(problem: str) -> catalogue.Refused:
    return catalogue.FORBIDDEN.refused(problem=problem)
