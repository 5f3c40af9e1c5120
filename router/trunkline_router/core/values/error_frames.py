"""Refusals in the contract's forms."""

from __future__ import annotations

from trunkline.v1.catalogue import Refused
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import ClosingFrame, ErrorFrame


def to_proto(reason: Refused) -> Error:
    """For a batch's results."""
    entry = reason.entry
    return Error(
        code=entry.code,
        message=str(reason),
        retryable=entry.retryable,
        retry_after_ms=reason.retry_after_ms,
    )


def error_frame(reason: Refused, frame_id: str = "") -> ErrorFrame:
    """For a client, in answer to the frame of that id."""
    entry = reason.entry
    return ErrorFrame(
        id=frame_id,
        code=entry.code,
        message=str(reason),
        retryable=entry.retryable,
        retry_after_ms=reason.retry_after_ms,
    )


def closing_frame(reason: Refused) -> ClosingFrame:
    """For a client whose connection ends. The entry must have a close code."""
    entry = reason.entry
    return ClosingFrame(
        code=entry.close_code,
        reason=entry.code,
        message=str(reason),
        reconnect_after_ms=reason.retry_after_ms if entry.close_code < 4500 else 0,
    )
