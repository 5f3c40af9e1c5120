"""Errors in OpenAI's shape, with the headers by which its SDKs decide on a retry."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
from trunkline.v1 import catalogue

#: `type` of an error by the HTTP status; other statuses below 500 are requests that can never succeed.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

#: OpenAI's own codes, which programs compare; all other errors have the catalogue's code.
_CODES = {
    catalogue.UNAUTHORIZED.code: "invalid_api_key",
    catalogue.UNKNOWN_AGENT.code: "model_not_found",
    catalogue.RATE_LIMITED.code: "rate_limit_exceeded",
}


def invalid(param: str, problem: str) -> catalogue.Refused:
    """The refusal of a request that no agent can answer; `param` names the field."""
    return catalogue.INVALID_ARGUMENT.refused(field=param, problem=problem)


class RenderedError(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def event(self) -> bytes:
        """The error inside a stream, where the SDKs raise it."""
        return b"data: %b\n\n" % msgspec.json.encode(self.body)


def render(
    code: str, text: str, status: int, *, param: str = "", retryable: bool = False, retry_after_ms: int = 0
) -> RenderedError:
    """The error for a code of the catalogue.

    The SDKs would retry every 408, 409, 429 and 5xx, so a header says whether a retry can help.
    """
    error = {
        "message": text,
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": param or ("model" if code == catalogue.UNKNOWN_AGENT.code else None),
        "code": _CODES.get(code, code),
    }
    headers = {"cache-control": "no-store", "x-should-retry": "true" if retryable else "false"}
    if retry_after_ms > 0:
        headers |= {
            "retry-after": str(math.ceil(retry_after_ms / 1000)),
            "retry-after-ms": str(retry_after_ms),
        }
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return RenderedError(status, headers, {"error": error})


def render_refusal(reason: catalogue.Refused, status: int) -> RenderedError:
    """The error for a refusal, which has this HTTP status."""
    return render(
        reason.entry.code,
        str(reason),
        status,
        param=str(reason.values.get("field", "")) if reason.entry is catalogue.INVALID_ARGUMENT else "",
        retryable=reason.entry.retryable,
        retry_after_ms=reason.retry_after_ms,
    )
