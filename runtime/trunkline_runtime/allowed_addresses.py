"""Addresses that a client's token allows: one rule for connections and for calls over HTTP."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1.address_pb2 import (
    CONVERSATION_KIND_GROUP,
    CONVERSATION_KIND_PERSON,
    Address,
    Conversation,
)


class AllowedAddresses(NamedTuple):
    """Agents, platforms and conversations that a token allows; None for any."""

    agents: frozenset[str] | None
    platforms: frozenset[str] | None
    #: Persons whose conversations are allowed.
    persons: frozenset[str] | None
    groups: frozenset[str] | None

    def problem_with(self, address: Address) -> str:
        """The reason why the address is forbidden; empty if it is allowed.

        The tenant is not checked: a token is verified for one.
        """
        if self.agents is not None and address.agent not in self.agents:
            return f"the token does not allow agent {address.agent[:128]}"
        if self.platforms is not None and address.platform not in self.platforms:
            return f"the token does not allow platform {address.platform[:128]}"
        match address.WhichOneof("target"):
            case None:
                return ""
            case "conversation":
                return self._problem_with_conversation(address.conversation)
        return "clients cannot connect to a user or a connection"

    def _problem_with_conversation(self, conversation: Conversation) -> str:
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
