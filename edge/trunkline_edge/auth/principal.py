"""Who shows a token, and what it allows."""

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

#: As tokens name them.
RIGHTS: dict[str, Right.ValueType] = {
    "publish": RIGHT_PUBLISH,
    "subscribe": RIGHT_SUBSCRIBE,
    "history": RIGHT_HISTORY,
    "cancel": RIGHT_CANCEL,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """What a token that was verified says, or a secret that clients share."""

    #: Empty where it names nobody.
    user: str
    #: Ids of agents and platforms that may be connected to; None for any.
    agents: frozenset[str] | None
    platforms: frozenset[str] | None
    #: Ids of persons whose conversations may be connected to; None for any.
    persons: frozenset[str] | None
    #: Ids of groups that may be joined; None for any.
    groups: frozenset[str] | None
    rights: frozenset[Right.ValueType]
    #: Empty where it has none.
    token_id: str
    #: Seconds since 1970; None where it does not say.
    issued_at_s: float | None
    #: Likewise; None where it does not expire.
    expires_at_s: float | None
    #: The identity of the key that verified it.
    key: str
    #: It is for any user, whom the client names.
    any_user: bool = False

    def grants(self) -> Grants:
        """What the router is told."""
        grants = Grants(
            rights=sorted(self.rights),
            all_groups=self.groups is None,
            groups=sorted(self.groups or ()),
            token_id=self.token_id,
        )
        # Rounded down: never valid for longer, never issued later.
        if self.expires_at_s is not None:
            grants.expires_at.FromMilliseconds(int(self.expires_at_s * 1000))
        if self.issued_at_s is not None:
            grants.issued_at.FromMilliseconds(int(self.issued_at_s * 1000))
        return grants

    def check(self, opened: ConnectionOpened, own_user: bool = True) -> None:
        """Raises Refused FORBIDDEN where the client wants to connect as, or to, what is not allowed.

        Without `own_user` the user is not looked at. The tenant is not: the token was verified for one.
        """
        if own_user and not self.any_user and opened.user not in ("", self.user):
            whom = f"user {self.user}" if self.user else "no user"
            raise _forbidden(f"the token is for {whom}, and not for user {opened.user[:128]}")
        problem = self._problem_of(opened.address)
        if problem:
            raise _forbidden(problem)

    def _problem_of(self, address: Address) -> str:
        """Why an address may not be connected to; empty where it may."""
        if self.agents is not None and address.agent not in self.agents:
            return f"the token does not allow agent {address.agent[:128]}"
        if self.platforms is not None and address.platform not in self.platforms:
            return f"the token does not allow platform {address.platform[:128]}"
        match address.WhichOneof("target"):
            case None:
                return ""
            case "conversation":
                return self._problem_of_conversation(address.conversation)
        return "nobody connects to a user or a connection"

    def _problem_of_conversation(self, conversation: Conversation) -> str:
        ident = conversation.id
        if conversation.kind == CONVERSATION_KIND_PERSON:
            kind, allowed = "person", self.persons
        elif conversation.kind == CONVERSATION_KIND_GROUP:
            kind, allowed = "group", self.groups
        else:
            return "a conversation is with a person or a group"
        if allowed is None or ident in allowed:
            return ""
        return f"the token does not allow {kind}:{ident[:128]}"


def _forbidden(problem: str) -> catalogue.Refused:
    return catalogue.FORBIDDEN.refused(problem=problem)
