"""The last frame of a connection."""

from __future__ import annotations

from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame


def closing_frame(reason: Refused) -> ClosingFrame:
    """The `closing` frame for an entry of the catalogue that has a close code."""
    entry = reason.entry
    return ClosingFrame(
        code=entry.close_code,
        reason=entry.code,
        message=str(reason),
        reconnect_after_ms=reason.retry_after_ms if entry.close_code < 4500 else 0,
    )
