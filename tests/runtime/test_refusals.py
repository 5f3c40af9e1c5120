"""Refusals in the contract's forms."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline_runtime.refusals import (
    STATUS_METADATA,
    closing_frame,
    details_of,
    error_frame,
    read_status,
    refusal_of,
    to_error,
    to_status,
)

LIMITED = catalogue.RATE_LIMITED.refused(retry_after_ms=1500, limit="3 messages a second", whose="tenant t")


def test_a_status_survives_the_metadata_of_a_call() -> None:
    status = to_status(LIMITED)
    assert read_status([("other", "x"), (STATUS_METADATA, status.SerializeToString())]) == status
    assert details_of(status) == ("RATE_LIMITED", 1500)
    assert status.message == str(LIMITED)


@pytest.mark.parametrize("metadata", [None, [], [("other", b"x")], [(STATUS_METADATA, b"\xff")]])
def test_absent_and_malformed_metadata_is_an_empty_status(
    metadata: list[tuple[str, str | bytes]] | None,
) -> None:
    assert details_of(read_status(metadata)) == ("", 0)


def test_an_entry_without_a_grpc_status_is_unavailable() -> None:
    entry = next(entry for entry in catalogue.ENTRIES.values() if not entry.grpc_status)
    names = {"limit": 1, "problem": "p", "code": 1}
    assert to_status(entry.refused(**names)).code == 14


def test_errors_and_error_frames_carry_code_text_and_delay() -> None:
    error, frame = to_error(LIMITED), error_frame(LIMITED, "f1")
    assert (error.code, error.message, error.retry_after_ms) == ("RATE_LIMITED", str(LIMITED), 1500)
    assert (frame.id, frame.code, frame.message, frame.retryable) == ("f1", error.code, error.message, True)


def test_a_final_close_names_no_time_to_reconnect() -> None:
    closing = closing_frame(catalogue.UNAUTHORIZED.refused(problem="a token must be given"))
    assert (closing.code, closing.reconnect_after_ms) == (4500, 0)
    restarting = closing_frame(catalogue.RESTARTING.refused())
    assert restarting.reconnect_after_ms == catalogue.RESTARTING.retry_after_ms


def test_a_closing_frame_gives_its_refusal_back() -> None:
    refused = catalogue.RESTARTING.refused()
    assert refusal_of(closing_frame(refused)).entry == refused.entry
    unknown = closing_frame(refused)
    unknown.reason = "NEWER_THAN_THIS_PROCESS"
    assert refusal_of(unknown).entry == catalogue.INTERNAL
