"""One tenant: settings, counters and rate limiters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import TenantPolicy
from trunkline.v1.message_pb2 import WITHOUT_WORKER_EXPIRE, WithoutWorker
from trunkline.v1.tenant_pb2 import (
    OPENNESS_NOBODY,
    TENANT_STATE_ACTIVE,
    AgentSettings,
    TenantLimits,
    TenantSettings,
)
from trunkline.v1.tenant_pb2 import Tenant as TenantProto
from trunkline_runtime.jwk import without_secret
from trunkline_runtime.tenant_policy import inactive, is_open, rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

from trunkline_router.core.tenants.fair_call_queue import FairCallQueue, Tarpit
from trunkline_router.core.tenants.revocations import Revocations
from trunkline_router.core.values.log_records import HistoryLimits
from trunkline_router.core.values.stored_records import StoredTenant

#: Depth of the bucket for backends and workers. Clients get 1 s; the difference is reserved for them.
BACKEND_DEPTH_S = 0.9
#: Agents of one tenant that edges are notified of.
MAX_KNOWN_AGENTS = 1024

#: Defaults of agents' settings.
DEFAULT_EXPIRE_AFTER_S = 3600
DEFAULT_MAX_WAITING = 10_000

#: Agents whose rules are cached; beyond it, all are made again.
MAX_CACHED_RULES = 10_000


class DeliveryRules(NamedTuple):
    """Rules for the deliveries to one agent."""

    without_worker: WithoutWorker.ValueType
    expire_after_ms: int
    max_waiting: int


class Tenant:
    """One tenant: its settings, counters, rate limiters and revocations. Tenants share nothing."""

    __slots__ = (
        "_delivery_rules",
        "attached_agents",
        "call_queue",
        "connection_count",
        "connections_by_user",
        "connections_closed",
        "connections_opened",
        "created_ms",
        "limits",
        "messages_committed",
        "messages_erased",
        "name",
        "publish_bucket",
        "publish_queue",
        "publish_rate",
        "refused",
        "revocations",
        "settings",
        "state",
        "tarpit",
        "updated_ms",
    )

    def __init__(self, stored: StoredTenant, defaults: TenantLimits) -> None:
        self.name = stored.tenant
        #: Connections that are admitted or about to be, in total and by user.
        self.connection_count = 0
        self.connections_by_user: Counter[str] = Counter()
        self.connections_opened = 0
        self.connections_closed = 0
        self.messages_committed = 0
        self.messages_erased = 0
        #: Refusals to clients and backends, by the catalogue's code.
        self.refused: Counter[str] = Counter()
        self.revocations = Revocations()
        #: Agents that workers have attached to, at most MAX_KNOWN_AGENTS; more are not made known to edges.
        self.attached_agents: set[str] = set()
        #: Bucket that all messages draw from: those of clients, backends and workers.
        self.publish_bucket = TokenBucket()
        #: Calls of any kind, and calls that publish.
        self.call_queue = FairCallQueue(TokenBucket(), f"the backends of tenant {self.name}")
        self.publish_queue = FairCallQueue(self.publish_bucket, f"tenant {self.name}")
        self.tarpit = Tarpit()
        self._delivery_rules: dict[str, DeliveryRules] = {}
        self.update(stored, defaults)

    def update(self, stored: StoredTenant, defaults: TenantLimits) -> None:
        """Take over state and settings; `defaults` replace limits that are not set."""
        self.state = stored.state
        self.settings = TenantSettings.FromString(stored.settings)
        self._delivery_rules.clear()
        self.created_ms = stored.created_ms
        self.updated_ms = stored.updated_ms
        self.limits = TenantLimits()
        self.limits.CopyFrom(defaults)
        # An unset limit is 0, which MergeFrom leaves out.
        self.limits.MergeFrom(self.settings.limits)
        messages, size = self.limits.messages_per_s, self.limits.bytes_per_s
        self.publish_rate = RateLimit(messages, size)
        self.publish_queue.rate = RateLimit(messages, size, depth_s=BACKEND_DEPTH_S)
        self.call_queue.rate = RateLimit(self.limits.calls_per_s, size, unit="calls")

    def count_connection(self, user: str) -> None:
        """Count a connection that was admitted or restored; `user` may be empty."""
        self.connection_count += 1
        if user:
            self.connections_by_user[user] += 1

    def uncount_connection(self, user: str) -> None:
        """Stop counting a connection that has closed, accepted or not."""
        self.connection_count -= 1
        if user:
            self.connections_by_user[user] -= 1
            if not self.connections_by_user[user]:
                del self.connections_by_user[user]

    @property
    def is_active(self) -> bool:
        """The tenant is neither suspended nor being deleted."""
        return self.state == TENANT_STATE_ACTIVE

    @property
    def retention(self) -> HistoryLimits:
        """Bounds of each log of the tenant."""
        kept = self.settings.retention
        return HistoryLimits(kept.max_age_s * 1000, kept.max_messages, kept.max_bytes)

    def agent_settings(self, agent: str) -> AgentSettings:
        """Return the settings of one agent; fields that the tenant does not set are 0."""
        found = AgentSettings()
        found.CopyFrom(self.settings.agent_defaults)
        # An unset field is 0, which MergeFrom leaves out; reading a missing key would add it.
        if agent in self.settings.agents:
            found.MergeFrom(self.settings.agents[agent])
        return found

    def add_agents(self, agents: Iterable[str]) -> bool:
        """Note agents that a worker has attached to; return whether the known agents change by it."""
        known = len(self.attached_agents)
        for agent in agents:
            if len(self.attached_agents) < MAX_KNOWN_AGENTS:
                self.attached_agents.add(agent)
        return len(self.attached_agents) > known

    def _known_agents(self) -> list[str]:
        settings = self.settings
        named = {*settings.agents, *settings.pipelines, settings.default_agent} - {""}
        return sorted(named) + sorted(self.attached_agents - named)

    def delivery_rules(self, agent: str) -> DeliveryRules:
        """Return the rules for deliveries to one agent."""
        rules = self._delivery_rules.get(agent)
        if rules is None:
            if len(self._delivery_rules) >= MAX_CACHED_RULES:
                self._delivery_rules.clear()
            settings = self.agent_settings(agent)
            rules = self._delivery_rules[agent] = DeliveryRules(
                settings.without_worker or WITHOUT_WORKER_EXPIRE,
                1000 * (settings.expire_after_s or DEFAULT_EXPIRE_AFTER_S),
                settings.max_waiting or DEFAULT_MAX_WAITING,
            )
        return rules

    def check_active(self) -> None:
        """Raise Refused TENANT_SUSPENDED or UNKNOWN_TENANT unless the tenant is active."""
        if not self.is_active:
            raise self.inactive_error()

    def inactive_error(self) -> Refused:
        """Return the refusal of requests while the tenant is not active."""
        return inactive(self.name, self.state)

    def is_open_to(self, is_local: bool) -> bool:
        """Return whether callers without credentials are admitted; `is_local` if on the same machine."""
        return is_open(self.settings.open_to, is_local)

    def take(self, size: int, now: float) -> None:
        """Charge a client's frame of `size` bytes. Raises Refused RATE_LIMITED if the bucket is empty."""
        wait_s = self.publish_bucket.take(self.publish_rate, size, now)
        if wait_s:
            raise rate_limited(self.publish_rate, wait_s, f"tenant {self.name}")

    def policy(self) -> TenantPolicy:
        """Return the policy that edges enforce, secrets included."""
        policy = TenantPolicy(tenant=self.name, state=self.state, settings=self.settings)  # type: ignore[arg-type]
        policy.settings.limits.CopyFrom(self.limits)
        policy.settings.ClearField("retention")
        policy.settings.ClearField("encrypt_messages")
        for name, agent in self.settings.agents.items():
            policy.settings.agents[name].CopyFrom(AgentSettings(accepts=agent.accepts))
        policy.agents.extend(self._known_agents()[:MAX_KNOWN_AGENTS])
        policy.settings.agent_defaults.CopyFrom(AgentSettings(accepts=self.settings.agent_defaults.accepts))
        return policy

    def to_proto(self) -> TenantProto:
        """Return the tenant as a message of the contract, without secrets."""
        proto = TenantProto(tenant=self.name, state=self.state, settings=self.settings)  # type: ignore[arg-type]
        proto.settings.open_to = self.settings.open_to or OPENNESS_NOBODY
        for key in proto.settings.client_auth.keys:
            key.jwk = without_secret(key.jwk)
        proto.created_at.FromMilliseconds(self.created_ms)
        proto.updated_at.FromMilliseconds(self.updated_ms)
        return proto

    def __repr__(self) -> str:
        return f"<Tenant {self.name}, {self.connection_count} connections>"
