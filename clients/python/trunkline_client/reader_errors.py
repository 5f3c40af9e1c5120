"""Errors that the readers of a failed message get. Pure."""

from __future__ import annotations

import re

from trunkline.v1.error_pb2 import Error

from trunkline_client.errors import Refused
from trunkline_client.well_formed import well_formed

#: For a message whose block was left without ending it.
INTERRUPTED = Error(code="INTERRUPTED", message="The reply was interrupted")

_MAX_TEXT_CHARS = 1024


def error_for_readers(error: Exception) -> Error:
    """An exception as an `Error`: the name of its class as the code, and its text."""
    if isinstance(error, Refused):
        return Error(code=error.code, message=error.message)
    name = type(error).__name__
    code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()
    return Error(code=code, message=well_formed(str(error)[:_MAX_TEXT_CHARS]) or name)
