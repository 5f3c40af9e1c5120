"""What may become of a delivery other than an answer. Pure."""

from __future__ import annotations

from trunkline.v1.agent_service_pb2 import Delivery, Settlement

from trunkline_client.errors import AlreadyAnswered, Fenced, ReplyCancelled

#: The contract's bounds.
_MAX_REASON_CHARS = 256
_MAX_AFTER_S = 3600.0
#: How long to wait before a message on which a handler failed is delivered again.
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0


class RetryLater(Exception):
    """Raised by a handler: deliver the message again, in `after_s` seconds (at most an hour).

    What was said after it in the conversation waits for it. Each delivery counts as an attempt; after
    the router's limit the message becomes a dead letter. A streamed reply stays open meanwhile, for the
    next attempt to go on with, unless that takes longer than the router keeps it.
    """

    def __init__(self, after_s: float = 1.0, reason: str = "") -> None:
        super().__init__(after_s, reason)
        self.after_s = after_s
        self.reason = reason

    def __str__(self) -> str:
        return f"again in {self.after_s:g} s: {self.reason or 'no reason given'}"


class Reject(Exception):
    """Raised by a handler: give the message up; it becomes a dead letter at once."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "rejected"


def after(delivery: Delivery, error: BaseException, *, told: bool) -> Settlement | None:
    """The settlement after a handler has raised this; None where the delivery is in other hands.

    `told`: its readers know of the failure, so the message is answered.
    """
    settlement = Settlement(delivery_id=delivery.delivery_id)
    match error:
        case Fenced():
            return None
        case ReplyCancelled() | AlreadyAnswered():
            pass
        case RetryLater(after_s=after_s, reason=reason):
            _retry(settlement, after_s, reason)
        case Reject():
            settlement.reject.reason = str(error)[:_MAX_REASON_CHARS]
        case _ if not told:
            wait_s = _FIRST_RETRY_S * 2.0 ** min(max(delivery.attempt, 1) - 1, 16)
            _retry(settlement, min(wait_s, _LAST_RETRY_S), f"{type(error).__name__}: {error}")
        case _:
            pass
    return settlement


def again(delivery: Delivery, after_s: float, reason: str) -> Settlement:
    """The settlement that asks for another attempt."""
    settlement = Settlement(delivery_id=delivery.delivery_id)
    _retry(settlement, after_s, reason)
    return settlement


def is_failure(error: BaseException) -> bool:
    """Whether an error is none of those that say what is to become of a delivery."""
    return not isinstance(error, (Fenced, ReplyCancelled, AlreadyAnswered, RetryLater, Reject))


def _retry(settlement: Settlement, after_s: float, reason: str) -> None:
    settlement.retry.after_ms = round(1000 * min(max(after_s, 0.0), _MAX_AFTER_S))
    settlement.retry.reason = reason[:_MAX_REASON_CHARS]
