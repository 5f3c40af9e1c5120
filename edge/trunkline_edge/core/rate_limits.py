"""Rate limits on frames and connects: per connection, and per tenant across its connections."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantLimits
from trunkline_runtime.tenant_policy import rate_limited
from trunkline_runtime.token_bucket import RateLimit, TokenBucket

#: Values in a frame that take as long as a message to decode, forward and encode.
VALUES_PER_MESSAGE = 16


class TenantRateLimiter:
    """Rate limiter that all connections of one tenant to this edge share."""

    __slots__ = ("_connects", "bucket", "connection_rate", "connects_rate", "frame_bytes", "name", "rate")

    def __init__(self, name: str, limits: TenantLimits) -> None:
        self.name = name
        self.bucket = TokenBucket()
        self._connects = TokenBucket()
        self.set(limits)

    def set(self, limits: TenantLimits) -> None:
        """Apply new limits, to connected clients too."""
        self.rate = RateLimit(limits.messages_per_s, limits.bytes_per_s)
        self.connection_rate = RateLimit(limits.connection_messages_per_s, limits.connection_bytes_per_s)
        self.connects_rate = RateLimit(limits.connects_per_s)
        self.frame_bytes = limits.frame_bytes

    def connect(self, now: float) -> None:
        """Count a connect. Raises Refused TOO_MANY_CONNECTS."""
        wait_s = self._connects.take(self.connects_rate, 0, now)
        if wait_s:
            raise catalogue.TOO_MANY_CONNECTS.refused(
                retry_after_ms=max(1, round(wait_s * 1000)), limit=f"{self.connects_rate.messages_per_s:g}"
            )


class ConnectionRateLimiter:
    """Rate limiter of one connection, or of a user's calls, on top of its tenant's."""

    __slots__ = ("_bucket", "_whose", "tenant")

    def __init__(self, tenant: TenantRateLimiter, whose: str = "this connection") -> None:
        self.tenant = tenant
        self._whose = whose
        self._bucket = TokenBucket()

    def take(self, size: int, now: float) -> Refused | None:
        """Count a frame of `size` bytes; return the refusal if it is over a limit."""
        tenant = self.tenant
        wait_s = self._bucket.take(tenant.connection_rate, size, now)
        if wait_s:
            return rate_limited(tenant.connection_rate, wait_s, self._whose)
        wait_s = tenant.bucket.take(tenant.rate, size, now)
        if wait_s:
            self._bucket.refund(tenant.connection_rate, size)
            return rate_limited(tenant.rate, wait_s, f"the clients of tenant {tenant.name}")
        return None

    def charge(self, values: int, now: float) -> None:
        """Charge the values of a frame that was taken, as messages, into debt if need be.

        The frame itself may pass; later ones are over the limit until the debt is paid.
        """
        messages = values / VALUES_PER_MESSAGE
        tenant = self.tenant
        rate = tenant.connection_rate
        self._bucket.charge(rate, rate.clamp_messages(messages), 0, now)
        tenant.bucket.charge(tenant.rate, tenant.rate.clamp_messages(messages), 0, now)
