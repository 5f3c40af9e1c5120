"""Rejections of a WebSocket handshake, from the HTTP responses that carry them. Pure."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration
from websockets.http11 import Response

from trunkline_client.errors import Refused


def refusal_from_http(response: Response) -> Refused:
    """The rejection in a response other than 101; an edge's own carry a google.rpc.Status as JSON."""
    body = _json_object(response.body)
    status = response.status_code
    code, retryable, retry_after_ms = f"HTTP_{status}", status >= 500 or status in (408, 429), 0
    listed = body.get("details")
    details = {
        str(detail.get("@type")).rpartition("/")[2]: detail
        for detail in (listed if isinstance(listed, list) else ())
        if isinstance(detail, dict)
    }
    if entry := details.get("google.rpc.ErrorInfo"):
        code = str(entry.get("reason"))
        # A retryable entry comes with a RetryInfo, so codes newer than this client are understood.
        retry = details.get("google.rpc.RetryInfo")
        retryable = retry is not None
        retry_after_ms = _milliseconds(str((retry or {}).get("retryDelay")))
    message = body.get("message") or f"the edge answered {status} {response.reason_phrase}"
    return Refused(code, str(message), retryable=retryable, retry_after_ms=retry_after_ms)


def _milliseconds(duration: str) -> int:
    """A duration in protobuf's JSON form, such as `1.5s`; 0 if it is malformed."""
    parsed = Duration()
    try:
        parsed.FromJsonString(duration)
    except ValueError:
        return 0
    return parsed.ToMilliseconds()


def _json_object(body: bytes | bytearray | None) -> dict[str, Any]:
    try:
        value = json.loads(body or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
