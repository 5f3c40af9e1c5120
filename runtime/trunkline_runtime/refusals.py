"""Refusals in the contract's forms: gRPC status, batch error, error frame and closing frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import UNAVAILABLE
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import ClosingFrame, ErrorFrame

#: `domain` of every ErrorInfo that Trunkline sends.
DOMAIN = "trunkline"

#: The trailing metadata in which gRPC carries a serialized google.rpc.Status.
STATUS_METADATA = "grpc-status-details-bin"

#: Close codes from here on tell the client not to reconnect.
FIRST_FINAL_CLOSE_CODE = 4500


def to_status(reason: Refused) -> Status:
    """google.rpc.Status with an ErrorInfo and, if the call may be retried, a RetryInfo.

    The metadata of ErrorInfo holds the values that complete the text, such as the `expected` index. An
    entry without a gRPC status of its own becomes UNAVAILABLE.
    """
    entry = reason.entry
    status = Status(code=entry.grpc_status or UNAVAILABLE, message=str(reason))
    metadata = {name: str(value) for name, value in reason.values.items()}
    status.details.append(_packed(ErrorInfo(reason=entry.code, domain=DOMAIN, metadata=metadata)))
    if entry.retryable:
        delay = Duration()
        delay.FromMilliseconds(reason.retry_after_ms)
        status.details.append(_packed(RetryInfo(retry_delay=delay)))
    return status


def read_status(metadata: Iterable[tuple[str, str | bytes]] | None) -> Status:
    """The google.rpc.Status in a call's trailing metadata; an empty one if it is absent or malformed."""
    for name, value in metadata or ():
        if name == STATUS_METADATA and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


class StatusDetails(NamedTuple):
    """The details of a google.rpc.Status that Trunkline's callers act on."""

    #: A code of the catalogue; empty if the status has no ErrorInfo.
    reason: str
    retry_after_ms: int


def details_of(status: Status) -> StatusDetails:
    """The catalogue code and the retry delay of a status."""
    reason, retry_after_ms = "", 0
    for detail in status.details:
        info, retry = ErrorInfo(), RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    return StatusDetails(reason, retry_after_ms)


def to_error(reason: Refused) -> Error:
    """The `Error` of one item in a batch's results."""
    entry = reason.entry
    return Error(
        code=entry.code,
        message=str(reason),
        retryable=entry.retryable,
        retry_after_ms=reason.retry_after_ms,
    )


def error_frame(reason: Refused, frame_id: str = "") -> ErrorFrame:
    """The `error` frame that answers the client's frame of this id."""
    entry = reason.entry
    return ErrorFrame(
        id=frame_id,
        code=entry.code,
        message=str(reason),
        retryable=entry.retryable,
        retry_after_ms=reason.retry_after_ms,
    )


def closing_frame(reason: Refused) -> ClosingFrame:
    """The `closing` frame, last on a connection. The entry must have a close code."""
    entry = reason.entry
    return ClosingFrame(
        code=entry.close_code,
        reason=entry.code,
        message=str(reason),
        reconnect_after_ms=reason.retry_after_ms if entry.close_code < FIRST_FINAL_CLOSE_CODE else 0,
    )


def refusal_of(frame: ClosingFrame | ErrorFrame) -> Refused:
    """The refusal that a frame carries. A code newer than this process becomes INTERNAL."""
    if isinstance(frame, ErrorFrame):
        code, retry_after_ms = frame.code, frame.retry_after_ms
    else:
        code, retry_after_ms = frame.reason, frame.reconnect_after_ms
    entry = catalogue.ENTRIES.get(code, catalogue.INTERNAL)
    return Refused(entry, frame.message, retry_after_ms=retry_after_ms or None)


def _packed(message: Message) -> AnyProto:
    packed = AnyProto()
    packed.Pack(message)
    return packed
