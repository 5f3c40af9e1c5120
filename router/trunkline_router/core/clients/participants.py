"""Clients as the rules for their requests see them: on a connection, or calling with a token."""

from __future__ import annotations

from typing import Protocol

from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.tenants.token_client import TokenClient
from trunkline_router.core.values.topics import TopicKey


class Participant(Protocol):
    """A client with its permissions; a ConnectedClient is one."""

    tenant: Tenant
    #: Empty for an anonymous client.
    user: str

    def participates_in(self, key: TopicKey) -> bool:
        """Whether the client may publish in a conversation and read its log, rights aside."""

    def listens_to(self, key: TopicKey) -> bool:
        """Whether the client receives, or may receive, a conversation's messages."""


class CallingParticipant:
    """A client without a connection, in every conversation that its token allows."""

    __slots__ = ("_client", "tenant", "user")

    def __init__(self, tenant: Tenant, client: TokenClient) -> None:
        self.tenant = tenant
        self.user = client.user
        self._client = client

    def participates_in(self, key: TopicKey) -> bool:
        """See Participant."""
        return self._client.allows(key)

    def listens_to(self, key: TopicKey) -> bool:
        """See Participant."""
        return self._client.permissions.may_subscribe and self._client.allows(key)
