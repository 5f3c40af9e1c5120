"""How fast backends and workers may say something by streams."""

from __future__ import annotations

from collections import Counter

from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest

from trunkline_router.core.directory.directory import Directory


class StreamRateLimiter:
    """Takes what tenants send out of their buckets, which their clients draw from, too.

    A tenant that there is not, or that takes no part, is for others to refuse.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def charge(self, name: str, messages: int, size: int, now: float) -> float:
        """Messages that were taken in any case. Returns for how many seconds to read no more."""
        tenant = self._directory.tenants.get(name)
        return tenant.says.charge(messages, size, now) if tenant is not None else 0.0

    def charge_batch(self, batch: BroadcastManyRequest, now: float) -> float:
        """The same for a batch, whose sender waits for the slowest of its tenants."""
        named = [item.request.address.tenant for item in batch.requests]
        if not named:
            return 0.0
        size = batch.ByteSize()
        if named.count(named[0]) == len(named):
            return self.charge(named[0], len(named), size, now)
        counts = Counter(named)
        return max(
            self.charge(name, count, size * count // len(named), now) for name, count in counts.items()
        )


def said_in(batch: AttachRequest) -> int:
    """How many messages a worker says in a batch."""
    return len(batch.opens) + sum(len(settlement.replies) for settlement in batch.settlements)
