"""Rate limit for messages that backends and workers send by stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trunkline.v1.agent_service_pb2 import AttachRequest

from trunkline_router.core.directory.directory import Directory


class StreamRateLimiter:
    """Charges streams to the token buckets of their tenants, which the tenants' clients share.

    Unknown and inactive tenants are not charged; they are rejected elsewhere.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def charge(self, name: str, messages: int, size: int, now: float) -> float:
        """Charge messages that were accepted. Return for how many seconds to pause reading."""
        tenant = self._directory.tenants.get(name)
        return tenant.publish_queue.charge(messages, size, now) if tenant is not None else 0.0

    def charge_batch(self, tenants: Sequence[str], bytes_per_message: float, now: float) -> float:
        """Charge a batch with one message for each name. Return the longest pause of its tenants."""
        return max(
            (
                self.charge(name, count, int(count * bytes_per_message), now)
                for name, count in Counter(tenants).items()
            ),
            default=0.0,
        )


def count_messages(batch: AttachRequest) -> int:
    """Return the number of messages that a worker's batch contains."""
    return len(batch.opens) + sum(len(settlement.replies) for settlement in batch.settlements)
