"""Translation of failed gRPC calls and of contract errors into this package's exceptions."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import ErrorFrame

from trunkline_client.errors import OutcomeUnknown, Refused, TimedOut, TransportError, Unreachable

#: ErrorInfo.domain of the errors in the catalogue.
_DOMAIN = "trunkline"

#: Statuses by which gRPC or a proxy rejects a call before any handler runs. They carry no ErrorInfo.
_REJECTED_UNHANDLED = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

#: Statuses that repeating the same call does not change.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def error_from_rpc(
    error: grpc.aio.AioRpcError, router: str, *, may_have_effect: bool
) -> Refused | TransportError:
    """The exception for a failed call.

    A rejection that carries the catalogue's ErrorInfo is Refused. INTERNAL is not a rejection: the server
    failed while handling the call. Any other failure is an Unreachable if the call cannot have had an
    effect, because it was not sent or only reads, and an OutcomeUnknown otherwise; it is not retryable if
    its status is final.
    """
    code, message = error.code(), error.details() or "the call failed without a reason"
    refusal = _refusal(error, message)
    if refusal is not None:
        return _unless_internal(refusal, may_have_effect)
    if code in _REJECTED_UNHANDLED:
        return Refused(code.name, message)
    retryable = code not in _FINAL
    if not may_have_effect:
        return Unreachable(router, f"{message} ({code.name})", retryable=retryable)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(f"No answer from {router} in time; the call may have been carried out")
    return OutcomeUnknown(
        f"No answer from {router}; the call may have been carried out: {message} ({code.name})",
        retryable=retryable,
    )


def error_from_message(error: Error | ErrorFrame, *, may_have_effect: bool) -> Refused | OutcomeUnknown:
    """The exception for an error that the contract carries in a message."""
    refusal = Refused(
        error.code, error.message, retryable=error.retryable, retry_after_ms=error.retry_after_ms
    )
    return _unless_internal(refusal, may_have_effect)


def retry_delay_s(error: Refused | TransportError) -> float | None:
    """The wait that the server asks for before a retry, in seconds; None if retrying is of no use."""
    if not error.retryable:
        return None
    return error.retry_after_ms / 1000 if isinstance(error, (Refused, OutcomeUnknown)) else 0.0


def _unless_internal(refusal: Refused, may_have_effect: bool) -> Refused | OutcomeUnknown:
    if refusal.code == catalogue.INTERNAL.code and may_have_effect:
        return OutcomeUnknown(str(refusal), retry_after_ms=refusal.retry_after_ms)
    return refusal


def _refusal(error: grpc.aio.AioRpcError, message: str) -> Refused | None:
    """The catalogue's entry among the call's status details; None if it is absent or malformed."""
    try:
        return _refusal_in(_details(error), message)
    except DecodeError:
        return None


def _refusal_in(details: list[Any], message: str) -> Refused | None:
    code, retryable, retry_after_ms = "", False, 0
    for detail in details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            entry = ErrorInfo()
            detail.Unpack(entry)
            if entry.domain == _DOMAIN:
                code = entry.reason
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry = RetryInfo()
            detail.Unpack(retry)
            # A retryable entry comes with a RetryInfo, so codes newer than this client are understood.
            retryable, retry_after_ms = True, retry.retry_delay.ToMilliseconds()
    return Refused(code, message, retryable=retryable, retry_after_ms=retry_after_ms) if code else None


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    """The call's status details. Raises DecodeError."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return list(Status.FromString(value).details)
    return []
