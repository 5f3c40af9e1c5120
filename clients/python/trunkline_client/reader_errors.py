"""Errors that the readers of a failed message get. Pure."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.error_pb2 import Error

from trunkline_client.errors import Refused
from trunkline_client.handler import Failed
from trunkline_client.well_formed import well_formed

#: Failure without a text for readers: the cause is in the worker's log.
AGENT_FAILED = Error(code=catalogue.AGENT_FAILED.code, message=catalogue.AGENT_FAILED.text)

_MAX_TEXT_CHARS = 1024


def error_for_readers(error: Exception) -> Error:
    """The error of a message whose author raised an exception: only Failed carries a text for readers."""
    if not isinstance(error, Failed):
        return AGENT_FAILED
    return Error(code=AGENT_FAILED.code, message=well_formed(error.message[:_MAX_TEXT_CHARS]))


def error_for_rejection(refusal: Refused) -> Error:
    """The error of a message to which the router has added no more; the text is the catalogue's."""
    if refusal.code == catalogue.MESSAGE_TOO_LARGE.code:
        return Error(code=refusal.code, message=refusal.message)
    return AGENT_FAILED
