"""How fast backends and workers may say something by streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trunkline.v1.agent_service_pb2 import AttachRequest

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

    def charge_batch(self, tenants: Sequence[str], bytes_per_message: float, now: float) -> float:
        """Charge a batch with one message for each name; its sender waits for the slowest of its tenants."""
        return max(
            (
                self.charge(name, count, int(count * bytes_per_message), now)
                for name, count in Counter(tenants).items()
            ),
            default=0.0,
        )


def said_in(batch: AttachRequest) -> int:
    """How many messages a worker says in a batch."""
    return len(batch.opens) + sum(len(settlement.replies) for settlement in batch.settlements)
