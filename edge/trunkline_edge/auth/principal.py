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
)
from trunkline.v1.address_pb2 import (
    CONVERSATION_KIND_GROUP,
    CONVERSATION_KIND_PERSON,
    Address,
    Conversation,
)
from trunkline.v1.edge_service_pb2 import ConnectionOpened

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
    #: Agents and platforms that the holder may connect to; None for any.
    agents: frozenset[str] | None
    platforms: frozenset[str] | None
    #: Persons whose conversations the holder may connect to; None for any.
    persons: frozenset[str] | None
    #: Groups that the holder may join; None for any.
    groups: frozenset[str] | None
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

    def grants(self) -> Grants:
        """The permissions as the contract carries them to the router."""
        grants = Grants(
            rights=sorted(self.rights),
            all_groups=self.groups is None,
            groups=sorted(self.groups or ()),
            token_id=self.token_id,
        )
        # Rounded down: never valid for longer, never issued later than claimed.
        if self.expires_at_s is not None:
            grants.expires_at.FromMilliseconds(int(self.expires_at_s * 1000))
        if self.issued_at_s is not None:
            grants.issued_at.FromMilliseconds(int(self.issued_at_s * 1000))
        return grants

    def authorize(self, opened: ConnectionOpened, names_user: bool = True) -> None:
        """Raises Refused FORBIDDEN unless the client may connect as this user to this address.

        The user is checked only if `names_user`. The tenant is not checked: the token was verified for it.
        """
        if names_user and not self.any_user and opened.user not in ("", self.user):
            whom = f"user {self.user}" if self.user else "no user"
            raise _forbidden(f"the token is for {whom}, not for user {opened.user[:128]}")
        problem = self._forbidden_address(opened.address)
        if problem:
            raise _forbidden(problem)

    def _forbidden_address(self, address: Address) -> str:
        """The reason why the address is forbidden; empty if it is allowed."""
        if self.agents is not None and address.agent not in self.agents:
            return f"the token does not allow agent {address.agent[:128]}"
        if self.platforms is not None and address.platform not in self.platforms:
            return f"the token does not allow platform {address.platform[:128]}"
        match address.WhichOneof("target"):
            case None:
                return ""
            case "conversation":
                return self._forbidden_conversation(address.conversation)
        return "clients cannot connect to a user or a connection"

    def _forbidden_conversation(self, conversation: Conversation) -> str:
        ident = conversation.id
        if conversation.kind == CONVERSATION_KIND_PERSON:
            kind, allowed = "person", self.persons
        elif conversation.kind == CONVERSATION_KIND_GROUP:
            kind, allowed = "group", self.groups
        else:
            return "a conversation must be with a person or a group"
        if allowed is None or ident in allowed:
            return ""
        return f"the token does not allow {kind}:{ident[:128]}"


def _forbidden(problem: str) -> catalogue.Refused:
    return catalogue.FORBIDDEN.refused(problem=problem)
