"""Errors of failed messages, as their readers get them."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.error_pb2 import Error
from trunkline_runtime.refusals import to_error


def error_for_readers(reported: Error | None = None) -> Error:
    """Return a producer's error, completed with the code and the text of AGENT_FAILED where it has none."""
    error = to_error(catalogue.AGENT_FAILED.refused())
    if reported is not None:
        # Empty fields are left out.
        error.MergeFrom(reported)
    return error
