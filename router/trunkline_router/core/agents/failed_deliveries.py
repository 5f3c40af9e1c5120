"""Deliveries with failed attempts that are not settled yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trunkline_router.core.agents.worker import AttachedWorker, LeasedDelivery
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import TopicKey


@dataclass(slots=True, eq=False)
class FailedDelivery:
    """A delivery that has failed and is attempted again."""

    delivery_id: int
    topic: TopicKey
    message_id: str
    attempts: int
    #: Time of the first failure that this process knows; None if there was none.
    since: float | None = None
    #: The worker that failed last; None if another process of the router noticed that.
    worker: AttachedWorker | None = None
    #: Wall clock of the next attempt; 0 if that is at once or unknown.
    next_attempt_ms: int = 0


class FailedDeliveries:
    """Failed deliveries of one agent. Each is also waiting, delayed or leased, which bounds them."""

    def __init__(self) -> None:
        self._by_id: dict[int, FailedDelivery] = {}
        self._by_topic: dict[TopicKey, dict[int, FailedDelivery]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def ids(self) -> Iterable[int]:
        """Ids of the deliveries."""
        return self._by_id.keys()

    def get(self, delivery_id: int) -> FailedDelivery | None:
        """Return a delivery if it has failed."""
        return self._by_id.get(delivery_id)

    def of_topic(self, topic: TopicKey) -> Iterable[FailedDelivery]:
        """Return the failed deliveries of a conversation."""
        return self._by_topic.get(topic, {}).values()

    def loaded(self, delivery: StoredDelivery, message_id: str) -> None:
        """A delivery was read from the log that failed before."""
        self._add(FailedDelivery(delivery.delivery_id, delivery.topic, message_id, delivery.attempts))

    def record(self, leased: LeasedDelivery, now: float, next_attempt_ms: int) -> FailedDelivery:
        """An attempt has failed, and another one follows."""
        failed = self._by_id.get(leased.id)
        if failed is None:
            failed = FailedDelivery(leased.id, leased.delivery.topic, leased.message_id, 0)
            self._add(failed)
        failed.attempts = leased.attempt
        failed.since = now if failed.since is None else failed.since
        failed.worker = leased.worker
        failed.next_attempt_ms = next_attempt_ms
        return failed

    def forget(self, delivery_id: int) -> None:
        """The delivery is settled or gone."""
        failed = self._by_id.pop(delivery_id, None)
        if failed is not None:
            of_topic = self._by_topic[failed.topic]
            del of_topic[delivery_id]
            if not of_topic:
                del self._by_topic[failed.topic]

    def _add(self, failed: FailedDelivery) -> None:
        self._by_id[failed.delivery_id] = failed
        self._by_topic.setdefault(failed.topic, {})[failed.delivery_id] = failed
