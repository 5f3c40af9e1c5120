"""Settlements of deliveries: ack with replies, retry, or reject. Pure."""

from __future__ import annotations

from trunkline.v1.agent_service_pb2 import Delivery, Reply, Settlement
from trunkline.v1.message_pb2 import Part, TextPart

from trunkline_client.builders import text
from trunkline_client.errors import AlreadyAnswered, Fenced, ReplyCancelled
from trunkline_client.handler import HandlerResult, Reject, RetryLater
from trunkline_client.well_formed import well_formed

#: The contract's bounds.
_MAX_REASON_CHARS = 256
_MAX_AFTER_S = 3600.0
#: Delays before a message whose handler failed is redelivered; doubled with each attempt.
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0


def settlement_for_result(delivery_id: int, result: HandlerResult) -> Settlement:
    """The ack of a delivery, with the replies that its handler returned.

    Raises TypeError for a result of another type.
    """
    if isinstance(result, str):
        # Shortcut past `_reply`: echo-like agents do little else.
        part = Part(text=TextPart(text=well_formed(result)))
        return Settlement(delivery_id=delivery_id, replies=[Reply(parts=[part])])
    if result is None:
        return Settlement(delivery_id=delivery_id)
    replies = [result] if isinstance(result, (Reply, Part)) else result
    return Settlement(delivery_id=delivery_id, replies=[_reply(each) for each in replies])


def settlement_for_error(
    delivery: Delivery, error: BaseException, *, failure_reported: bool
) -> Settlement | None:
    """The settlement after the handler raised; None if another worker has the delivery.

    With `failure_reported` the readers already know of the failure, so the message counts as answered.
    """
    settlement = Settlement(delivery_id=delivery.delivery_id)
    match error:
        case Fenced():
            return None
        case ReplyCancelled() | AlreadyAnswered():
            pass
        case RetryLater(after_s=after_s, reason=reason):
            _set_retry(settlement, after_s, reason)
        case Reject():
            settlement.reject.reason = well_formed(str(error)[:_MAX_REASON_CHARS])
        case _ if not failure_reported:
            delay_s = _FIRST_RETRY_S * 2.0 ** min(max(delivery.attempt, 1) - 1, 16)
            _set_retry(settlement, min(delay_s, _LAST_RETRY_S), f"{type(error).__name__}: {error}")
        case _:
            pass
    return settlement


def retry_settlement(delivery: Delivery, after_s: float, reason: str) -> Settlement:
    """The settlement that asks for redelivery."""
    settlement = Settlement(delivery_id=delivery.delivery_id)
    _set_retry(settlement, after_s, reason)
    return settlement


def is_failure(error: BaseException) -> bool:
    """Whether a handler's exception is a failure, and not a way to settle the delivery."""
    return not isinstance(error, (Fenced, ReplyCancelled, AlreadyAnswered, RetryLater, Reject))


def _set_retry(settlement: Settlement, after_s: float, reason: str) -> None:
    settlement.retry.after_ms = round(1000 * min(max(after_s, 0.0), _MAX_AFTER_S))
    settlement.retry.reason = well_formed(reason[:_MAX_REASON_CHARS])


def _reply(content: str | Part | Reply) -> Reply:
    if isinstance(content, Reply):
        return content
    if isinstance(content, str):
        return Reply(parts=text(content))
    if isinstance(content, Part):
        return Reply(parts=[content])
    raise TypeError(
        f"a handler returns str, Part, Reply, a sequence of these or None, not {type(content).__name__}"
    )
