"""How fast clients may send: each connection by itself, and all of a tenant together."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_runtime.tenant_policy import rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket


class TenantRateLimiter:
    """What the clients of one tenant may send to this edge; shared by its connections."""

    __slots__ = ("_connects", "connection_rate", "connects_rate", "frame_bytes", "meter", "name", "rate")

    def __init__(self, name: str, limits: TenantLimits) -> None:
        self.name = name
        self.meter = TokenBucket()
        self._connects = TokenBucket()
        self.set(limits)

    def set(self, limits: TenantLimits) -> None:
        """The limits are these from now on, also for those who are connected."""
        self.rate = RateLimit(limits.messages_per_s, limits.bytes_per_s)
        self.connection_rate = RateLimit(limits.connection_messages_per_s, limits.connection_bytes_per_s)
        self.connects_rate = RateLimit(limits.connects_per_s)
        self.frame_bytes = limits.frame_bytes

    def connect(self, now: float) -> None:
        """A client wants to connect. Raises Refused TOO_MANY_CONNECTS."""
        wait_s = self._connects.take(self.connects_rate, 0, now)
        if wait_s:
            raise catalogue.TOO_MANY_CONNECTS.refused(
                retry_after_ms=max(1, round(wait_s * 1000)), limit=f"{self.connects_rate.messages_per_s:g}"
            )


class ConnectionRateLimiter:
    """What one connection may send."""

    __slots__ = ("_meter", "tenant")

    def __init__(self, tenant: TenantRateLimiter) -> None:
        self.tenant = tenant
        self._meter = TokenBucket()

    def take(self, size: int, now: float) -> Refused | None:
        """A frame of so many bytes came; the refusal where that is too much for now."""
        tenant = self.tenant
        wait_s = self._meter.take(tenant.connection_rate, size, now)
        if wait_s:
            return rate_limited(tenant.connection_rate, wait_s, "this connection")
        wait_s = tenant.meter.take(tenant.rate, size, now)
        if wait_s:
            self._meter.give_back(tenant.connection_rate, size)
            return rate_limited(tenant.rate, wait_s, f"the clients of tenant {tenant.name}")
        return None
