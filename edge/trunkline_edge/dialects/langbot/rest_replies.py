"""The form of LangBot's HTTP replies: `{code, msg, data}`, and `{code: -1, msg}` for failures."""

from __future__ import annotations

from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.dialects.dialect import CallRefused, HttpReply

#: Prefix of LangBot's paths.
PREFIXES = ("/api/v1/",)


def ok(content: Any) -> HttpReply:
    """The reply to a request that succeeded."""
    return HttpReply(200, {"code": 0, "msg": "ok", "data": content})


def failed(status: int, text: str) -> HttpReply:
    """The reply to a request that failed."""
    return HttpReply(status, {"code": -1, "msg": text})


def render_refusal(refused: CallRefused) -> HttpReply:
    """Render the refusal of an RPC, or of a request before its handler, with LangBot's own texts."""
    return _rendered(refused.code, str(refused), refused.http_status)


def render_refused(refused: Refused) -> HttpReply:
    """Render a handler's own refusal likewise."""
    return _rendered(refused.entry.code, str(refused), refused.entry.http_status)


def _rendered(code: str, text: str, status: int) -> HttpReply:
    if code == catalogue.UNAUTHORIZED.code:
        return failed(401, "No valid user token provided")
    if code == catalogue.UNKNOWN_TENANT.code:
        return failed(404, "Pipeline not found")
    return failed(status, f"Internal server error: {text}" if status == 500 else text)
