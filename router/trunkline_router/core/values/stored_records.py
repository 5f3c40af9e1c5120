"""Records that the log returns: open messages, deliveries, receipts, and everything about tenants."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from trunkline_router.core.values.log_records import Producer
from trunkline_router.core.values.topics import TopicKey


class StoredOpen(NamedTuple):
    """An open message."""

    topic: TopicKey
    #: The serialized Message, as it was opened.
    message: bytes
    producer: Producer
    #: Serialized ReplyDeltas, in order.
    deltas: list[bytes]
    #: The message that it answers was withdrawn; see Withdrawal.
    is_cancelled: bool = False


class StoredDelivery(NamedTuple):
    """An unsettled delivery."""

    delivery_id: int
    topic: TopicKey
    #: The serialized Message.
    message: bytes
    #: Failed attempts so far.
    attempts: int = 0
    #: Unix time after which it is not delivered, unless there were attempts; 0 for never.
    expires_ms: int = 0


class ExpiredDelivery(NamedTuple):
    """An unsettled delivery past its time, without attempts that the log knows of."""

    delivery_id: int
    tenant: str
    agent: str


class ExpiredPage(NamedTuple):
    """Expired deliveries among some of all deliveries."""

    expired: list[ExpiredDelivery]
    #: Argument of the next read; 0 after the last delivery.
    after: int


class StoredDeadLetter(NamedTuple):
    """A dead letter."""

    delivery_id: int
    #: The serialized Message.
    message: bytes
    attempts: int
    reason: str
    given_up_ms: int


class StoredReceipt(NamedTuple):
    """Seqs up to which a user was delivered, and has read, a conversation; 0 for nothing."""

    user: str
    delivered: int
    read: int
    updated_ms: int


class Backlog(NamedTuple):
    """Unsettled deliveries and dead letters of one agent."""

    agent: str
    #: Without those that have expired.
    waiting: int
    #: Creation time of the oldest waiting message; 0 if none waits.
    oldest_ms: int
    #: Number of dead letters.
    dead: int = 0


class StoredTenant(NamedTuple):
    """A tenant."""

    tenant: str
    #: A TenantState.
    state: int
    #: The serialized TenantSettings, secrets included.
    settings: bytes
    created_ms: int
    updated_ms: int


class StoredApiKey(NamedTuple):
    """An API key without its secret."""

    key_id: str
    tenant: str
    name: str
    #: SHA-256 of the secret.
    digest: bytes
    #: Values of Scope, in order.
    scopes: tuple[int, ...]
    created_ms: int
    #: 0 if the key was never used.
    used_ms: int = 0


class RevocationKind(IntEnum):
    """Subject of a revocation."""

    USER = 1
    TOKEN_ID = 2
    ALL = 3


class StoredRevocation(NamedTuple):
    """Revoked tokens of a tenant's clients; the latest of each kind and name."""

    tenant: str
    kind: RevocationKind
    #: The user or the token's id; empty for ALL.
    name: str
    #: Tokens issued earlier are revoked; 0 for a token's id.
    issued_before_ms: int
    revoked_ms: int


class AuditRecord(NamedTuple):
    """An administrative act. The action of a refused attempt ends with `:refused`, and is never repeated."""

    at_ms: int
    #: Empty if no tenant is concerned.
    tenant: str
    #: As in AuditEntry of the contract.
    actor: str
    source: str
    #: Name of the RPC.
    action: str
    target: str
    #: JSON, without secrets; empty for nothing.
    before: str = ""
    after: str = ""

    @property
    def size(self) -> int:
        """Characters of the states before and after, which may be long."""
        return len(self.before) + len(self.after)


#: End of the action of a refused attempt.
REFUSED = ":refused"


class AuditQuery(NamedTuple):
    """Selects audit records, newest first."""

    #: Empty for all tenants, and records of none.
    tenant: str
    #: Name of an RPC, whose refused attempts count too; empty for all.
    action: str
    since_ms: int
    #: Only records with lower ids; 0 for the newest.
    before_id: int
    limit: int
    #: No more records follow one with which their sizes reach this.
    max_chars: int = 2 << 20


@dataclass(slots=True)
class Registered:
    """All tenants with their API keys and revocations."""

    tenants: list[StoredTenant] = field(default_factory=list)
    api_keys: list[StoredApiKey] = field(default_factory=list)
    revocations: list[StoredRevocation] = field(default_factory=list)


@dataclass(slots=True)
class Registration:
    """Changes to tenants, API keys and revocations, and who made them.

    Records replace those of the same name; those of acts are added.
    """

    tenants: list[StoredTenant] = field(default_factory=list)
    api_keys: list[StoredApiKey] = field(default_factory=list)
    revocations: list[StoredRevocation] = field(default_factory=list)
    #: Ids of keys to delete.
    keys_gone: list[str] = field(default_factory=list)
    #: Ids and times of keys used; deleted keys are ignored.
    keys_used: list[tuple[str, int]] = field(default_factory=list)
    #: Revocations older than this are deleted; 0 for none.
    revoked_before_ms: int = 0
    #: Acts to record.
    audit: list[AuditRecord] = field(default_factory=list)
    #: Audit records older than this are deleted, some at a time; 0 for none.
    audited_before_ms: int = 0
