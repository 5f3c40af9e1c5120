"""Listeners of the commits of settlements."""

from __future__ import annotations

from collections.abc import Callable

from trunkline.v1.agent_service_pb2 import SettlementResult
from trunkline.v1.catalogue import Refused

from trunkline_router.core.agents.worker import LeasedDelivery
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry


class SettlementCommit:
    """Listener of an acknowledgement with its replies; gathers the result for the worker."""

    __slots__ = ("_leased", "_not_settled", "_result", "_settled")

    connection: ConnectedClient | None = None

    def __init__(
        self,
        leased: LeasedDelivery,
        settled: Callable[[LeasedDelivery, SettlementResult], None],
        not_settled: Callable[[LeasedDelivery, Refused], None],
    ) -> None:
        self._leased = leased
        self._settled = settled
        self._not_settled = not_settled
        self._result = SettlementResult(delivery_id=leased.id)

    @property
    def blocked_by(self) -> set[Link]:
        """Outboxes that its replies have filled; the worker gets no deliveries meanwhile."""
        return self._leased.worker.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """A reply is committed."""
        self._result.replies.add(message_id=pending.message.id, position=pending.message.position)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """A reply was rejected; `failed` reports the whole settlement."""

    def done(self) -> None:
        """The settlement is committed."""
        self._settled(self._leased, self._result)

    def failed(self, reason: Refused) -> None:
        """Nothing of the settlement was committed."""
        self._not_settled(self._leased, reason)


class GivenUpCommit:
    """Listener of a dead letter and of the reply that reports it to the conversation."""

    __slots__ = ("_given_up", "_leased", "_not_given_up")

    connection: ConnectedClient | None = None

    def __init__(
        self,
        leased: LeasedDelivery,
        given_up: Callable[[LeasedDelivery], None],
        not_given_up: Callable[[LeasedDelivery, Refused], None],
    ) -> None:
        self._leased = leased
        self._given_up = given_up
        self._not_given_up = not_given_up

    @property
    def blocked_by(self) -> set[Link]:
        """Outboxes that the reply has filled; the worker gets no deliveries meanwhile."""
        return self._leased.worker.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The reply is committed."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The reply was rejected; `failed` reports the whole."""

    def done(self) -> None:
        """Both are committed."""
        self._given_up(self._leased)

    def failed(self, reason: Refused) -> None:
        """Neither was committed."""
        self._not_given_up(self._leased, reason)


class AttemptCommit:
    """Listener of a failed attempt, whose commit nothing depends on."""

    __slots__ = ()

    def done(self) -> None:
        """Ignore the commit."""

    def failed(self, reason: Refused) -> None:
        """Ignore the failure."""
