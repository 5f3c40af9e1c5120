"""Settlements of deliveries: ack with replies, retry, or reject. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence

from trunkline.v1.agent_service_pb2 import Delivery, Reply, Settlement
from trunkline.v1.message_pb2 import Part, TextPart

from trunkline_client.builders import text
from trunkline_client.errors import AlreadyAnswered, Fenced, ReplyCancelled
from trunkline_client.handler import Failed, HandlerResult, Reject, RetryLater
from trunkline_client.reader_errors import error_for_readers
from trunkline_client.well_formed import well_formed

#: The contract's bounds.
_MAX_REASON_CHARS = 256
_MAX_AFTER_S = 3600.0
#: Version of the contract from which on a router chooses delays, and accepts a reply with an error.
_FAILURES_MINOR = 5
#: Delays that the worker chooses for earlier routers; doubled with each attempt.
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
    if not isinstance(replies, Sequence) or isinstance(replies, (bytes, bytearray, memoryview)):
        raise TypeError(_wrong_result(result))
    return Settlement(delivery_id=delivery_id, replies=[_reply(each) for each in replies])


def settlement_for_error(
    delivery: Delivery, error: BaseException, *, failure_reported: bool, router_minor: int
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
            _set_retry(settlement, _delay_s(delivery, after_s, router_minor), reason)
        case Reject():
            settlement.reject.reason = well_formed(str(error)[:_MAX_REASON_CHARS])
        case _ if failure_reported:
            pass
        case Failed() if router_minor < _FAILURES_MINOR:
            settlement.reject.reason = well_formed(str(error)[:_MAX_REASON_CHARS])
        case Failed():
            settlement.replies.add().error.CopyFrom(error_for_readers(error))
        case _:
            _set_retry(settlement, _delay_s(delivery, None, router_minor), description_of(error))
    return settlement


def description_of(error: BaseException) -> str:
    """The type and the text of an exception, for operators. Raises nothing, even if the text does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as broken:
        return f"{type(error).__name__}, whose text raises {type(broken).__name__}"


def retry_settlement(delivery: Delivery, reason: str) -> Settlement:
    """The settlement that asks for redelivery as soon as possible."""
    settlement = Settlement(delivery_id=delivery.delivery_id)
    _set_retry(settlement, 0.0, reason)
    return settlement


def is_failure(error: BaseException) -> bool:
    """Whether a handler's exception is a failure, and not a way to settle the delivery."""
    return not isinstance(error, (Fenced, ReplyCancelled, AlreadyAnswered, Failed, RetryLater, Reject))


def _delay_s(delivery: Delivery, after_s: float | None, router_minor: int) -> float | None:
    """The delay to ask for; None leaves it to the router."""
    if after_s is None and router_minor < _FAILURES_MINOR:
        return min(_FIRST_RETRY_S * 2.0 ** min(max(delivery.attempt, 1) - 1, 16), _LAST_RETRY_S)
    return after_s


def _set_retry(settlement: Settlement, delay_s: float | None, reason: str) -> None:
    # 0 means that the router chooses.
    settlement.retry.after_ms = 0 if delay_s is None else max(round(1000 * min(delay_s, _MAX_AFTER_S)), 1)
    settlement.retry.reason = well_formed(reason[:_MAX_REASON_CHARS])


def _reply(content: str | Part | Reply) -> Reply:
    if isinstance(content, Reply):
        return content
    if isinstance(content, str):
        return Reply(parts=text(content))
    if isinstance(content, Part):
        return Reply(parts=[content])
    raise TypeError(_wrong_result(content))


def _wrong_result(result: object) -> str:
    text = f"a handler returns str, Part, Reply, a sequence of these or None, not {type(result).__name__}"
    if isinstance(result, (Generator, AsyncGenerator)):
        text += "; to stream, open `worker.reply(message)` and pass the generator to its write_from()"
    return text
