"""Clients that call over HTTP with a token, as their edge verified it."""

from __future__ import annotations

from typing import NamedTuple, Self

from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import TokenHolder
from trunkline.v1.address_pb2 import Address
from trunkline_runtime.allowed_addresses import AllowedAddresses

from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import GROUP, PERSON, TopicKey, address_of


class TokenClient(NamedTuple):
    """The holder of a client's token: what a connection with the token would be, without the connection."""

    tenant: str
    #: Empty if the token names no user.
    user: str
    permissions: Permissions
    addresses: AllowedAddresses

    @classmethod
    def of(cls, holder: TokenHolder) -> Self:
        """The client that an edge names in a call."""
        permissions = Permissions.from_grants(holder.grants)
        addresses = AllowedAddresses(
            None if holder.all_agents else frozenset(holder.agents),
            None if holder.all_platforms else frozenset(holder.platforms),
            frozenset(holder.persons),
            permissions.groups,
        )
        return cls(holder.tenant, holder.user, permissions, addresses)

    def allows(self, topic: TopicKey) -> bool:
        """Whether the topic is a conversation that the token allows."""
        return (
            topic[0] == self.tenant
            and topic[3] in (PERSON, GROUP)
            and not self.addresses.problem_with(address_of(topic))
        )

    def check_conversation(self, address: Address) -> None:
        """Raise Refused unless a valid address is a conversation that the token allows.

        INVALID_ARGUMENT for another kind of address, FORBIDDEN for another conversation.
        """
        if address.WhichOneof("target") != "conversation":
            problem = "must be a conversation, as the caller has a client's token"
            raise catalogue.INVALID_ARGUMENT.refused(field="address", problem=problem)
        problem = self.addresses.problem_with(address)
        if problem or address.tenant != self.tenant:
            problem = problem or "the client's token is not one of this tenant's"
            raise catalogue.FORBIDDEN.refused(problem=problem)
