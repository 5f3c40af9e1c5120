"""Refusals as HTTP responses: google.rpc.Status in JSON, with the headers that belong to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline_runtime.refusals import details_of, to_status

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

#: HTTP status by google.rpc.Code, as code.proto maps them, for errors that are not in the catalogue.
HTTP_STATUS = {
    1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429,
    9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip


class ErrorResponse(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes
    media_type: str = JSON


def error_response(reason: Refused) -> ErrorResponse:
    """The response to a request refused for `reason`."""
    status = to_status(reason)
    return _rendered(status, _http_status(reason.entry.code, status.code), reason.retry_after_ms)


def response_bytes(error: ErrorResponse, headers: Sequence[str] = (), *, is_head: bool = False) -> bytes:
    """The whole response, after which the connection ends; `headers` are added, `is_head` omits the body."""
    status, own, body, media_type = error
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in own.items()]
    lines += [*headers, f"content-type: {media_type}", f"content-length: {len(body)}"]
    lines += ["connection: close", "\r\n"]
    return "\r\n".join(lines).encode() + (b"" if is_head else body)


def status_response(status: Status) -> ErrorResponse:
    """The response for a google.rpc.Status of the router."""
    reason, retry_after_ms = details_of(status)
    return _rendered(status, _http_status(reason, status.code), retry_after_ms)


def http_status(status: Status) -> int:
    """The HTTP status: the catalogue's, else the one for the google.rpc.Code."""
    return _http_status(details_of(status).reason, status.code)


def _http_status(reason: str, code: int) -> int:
    entry = catalogue.ENTRIES.get(reason)
    return (entry.http_status if entry else 0) or HTTP_STATUS.get(code, 500)


def _rendered(status: Status, http_status: int, retry_after_ms: int) -> ErrorResponse:
    headers = {"cache-control": "no-store"}
    if retry_after_ms > 0:
        headers["retry-after"] = str(math.ceil(retry_after_ms / 1000))
    if http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if http_status == 426:
        headers |= {"upgrade": "websocket", "sec-websocket-version": "13"}
    details = [_detail(detail) for detail in status.details]
    content = {"code": status.code, "message": status.message, "details": details}
    return ErrorResponse(http_status, headers, msgspec.json.encode(content))


def _detail(detail: AnyProto) -> dict[str, Any]:
    try:
        return MessageToDict(detail)
    except (TypeError, ValueError):
        # The type is newer than this edge.
        return {"@type": detail.type_url, "value": detail.value}
