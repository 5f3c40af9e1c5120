"""One tenant: what was declared for it, what it has now, and what it may use."""

from __future__ import annotations

from collections import Counter

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline.v1.tenant_pb2 import (
    OPENNESS_NOBODY,
    TENANT_STATE_ACTIVE,
    TenantLimits,
    TenantSettings,
)
from trunkline.v1.tenant_pb2 import Tenant as TenantProto
from trunkline_runtime.jwk import without_secret
from trunkline_runtime.tenant_policy import inactive, is_open, rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, Tarpit
from trunkline_router.core.tenants.revocations import Revocations
from trunkline_router.core.values.log_records import HistoryLimits, StoredTenant

#: How deep the buckets are for backends, whose clients' are a second deep: the rest is the clients' alone.
BACKENDS_DEPTH_S = 0.9


class Tenant:
    """What one tenant has; nothing here is shared with another."""

    __slots__ = (
        "calls",
        "connections_closed",
        "connections_opened",
        "created_ms",
        "known",
        "limits",
        "messages_committed",
        "messages_erased",
        "meter",
        "name",
        "rate",
        "refused",
        "resting",
        "revocations",
        "says",
        "settings",
        "state",
        "updated_ms",
        "users",
    )

    def __init__(self, stored: StoredTenant, defaults: TenantLimits) -> None:
        self.name = stored.tenant
        #: Those that the router knows, those on their way in among them; and by user.
        self.known = 0
        self.users: Counter[str] = Counter()
        self.connections_opened = 0
        self.connections_closed = 0
        self.messages_committed = 0
        self.messages_erased = 0
        #: By the catalogue's code: what was refused of its clients and backends.
        self.refused: Counter[str] = Counter()
        self.revocations = Revocations()
        #: What its clients and backends have sent lately.
        self.meter = TokenBucket()
        #: When it is the turn of calls for it, and of what backends and workers say.
        self.calls = FairCallQueue(TokenBucket(), f"the backends of tenant {self.name}")
        self.says = FairCallQueue(self.meter, f"tenant {self.name}")
        self.resting = Tarpit()
        self.declare(stored, defaults)

    def declare(self, stored: StoredTenant, defaults: TenantLimits) -> None:
        """It was declared, or changed, to be so."""
        self.state = stored.state
        self.settings = TenantSettings.FromString(stored.settings)
        self.created_ms = stored.created_ms
        self.updated_ms = stored.updated_ms
        self.limits = TenantLimits()
        self.limits.CopyFrom(defaults)
        # What is 0 is not set, so the default stays.
        self.limits.MergeFrom(self.settings.limits)
        messages, size = self.limits.messages_per_s, self.limits.bytes_per_s
        self.rate = RateLimit(messages, size)
        self.says.rate = RateLimit(messages, size, depth_s=BACKENDS_DEPTH_S)
        self.calls.rate = RateLimit(self.limits.calls_per_s, size, unit="calls")

    def count_connection(self, user: str) -> None:
        """Count a connection that was admitted or restored; `user` may be empty."""
        self.known += 1
        if user:
            self.users[user] += 1

    def uncount_connection(self, user: str) -> None:
        """Stop counting a connection that has closed, accepted or not."""
        self.known -= 1
        if user:
            self.users[user] -= 1
            if not self.users[user]:
                del self.users[user]

    @property
    def is_active(self) -> bool:
        """It takes part."""
        return self.state == TENANT_STATE_ACTIVE

    @property
    def history(self) -> HistoryLimits:
        """What is kept of its logs."""
        kept = self.settings.retention
        return HistoryLimits(kept.max_age_s * 1000, kept.max_messages, kept.max_bytes)

    def check_active(self) -> None:
        """Raises Refused where it takes no part."""
        if not self.is_active:
            raise self.inactive()

    def inactive(self) -> Refused:
        """The refusal of what is asked of a tenant that takes no part."""
        return inactive(self.name, self.state)

    def is_open_to(self, is_local: bool) -> bool:
        """Whether somebody who shows no proof may come in; `is_local` is from the same machine."""
        return is_open(self.settings.open_to, is_local)

    def take(self, size: int, now: float) -> None:
        """Something of this size was sent. Raises Refused RATE_LIMITED where that is too much for now."""
        wait_s = self.meter.take(self.rate, size, now)
        if wait_s:
            raise rate_limited(self.rate, wait_s, f"tenant {self.name}")

    def policy(self) -> TenantPolicy:
        """What edges are told."""
        policy = TenantPolicy(tenant=self.name, state=self.state, settings=self.settings)  # type: ignore[arg-type]
        policy.settings.limits.CopyFrom(self.limits)
        policy.settings.ClearField("retention")
        return policy

    def to_proto(self) -> TenantProto:
        """What callers are shown: no secrets."""
        shown = TenantProto(tenant=self.name, state=self.state, settings=self.settings)  # type: ignore[arg-type]
        shown.settings.open_to = self.settings.open_to or OPENNESS_NOBODY
        for key in shown.settings.client_auth.keys:
            key.jwk = without_secret(key.jwk)
        shown.created_at.FromMilliseconds(self.created_ms)
        shown.updated_at.FromMilliseconds(self.updated_ms)
        return shown

    def __repr__(self) -> str:
        return f"<Tenant {self.name}, {self.known} connections>"
