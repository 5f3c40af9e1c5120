"""A refusal as HTTP says it: google.rpc.Status in JSON, and the headers that go with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.code_pb2 import UNAVAILABLE
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from trunkline.v1.catalogue import Entry, Refused

DOMAIN = "trunkline"
JSON = "application/json"


class ErrorResponse(NamedTuple):
    """A whole response; its type is JSON."""

    status: int
    headers: dict[str, str]
    body: bytes


def grpc_code(entry: Entry) -> int:
    """The google.rpc.Code. One that no RPC is refused for has none: it says that this edge cannot take it."""
    return entry.grpc_status or UNAVAILABLE


def details_of(
    entry: Entry, values: Mapping[str, object], retry_after_ms: int | None = None
) -> list[AnyProto]:
    """The details that go with an entry of the catalogue; `values` complete its text."""
    metadata = {name: str(value) for name, value in values.items()}
    details = [_packed(ErrorInfo(reason=entry.code, domain=DOMAIN, metadata=metadata))]
    if entry.retryable:
        delay = Duration()
        delay.FromMilliseconds(entry.retry_after_ms if retry_after_ms is None else retry_after_ms)
        details.append(_packed(RetryInfo(retry_delay=delay)))
    return details


def of(entry: Entry, text: str, values: Mapping[str, object]) -> ErrorResponse:
    """The response to a request that is refused for this entry; `values` have completed its text."""
    details = details_of(entry, values)
    status = entry.http_status or 503
    return rendered(status, grpc_code(entry), text, details, entry.retry_after_ms)


def of_refused(reason: Refused) -> ErrorResponse:
    """The response to a request that is refused so."""
    entry = reason.entry
    details = details_of(entry, reason.values, reason.retry_after_ms)
    return rendered(entry.http_status or 503, grpc_code(entry), str(reason), details, reason.retry_after_ms)


def rendered(
    status: int, code: int, message: str, details: Iterable[AnyProto], retry_after_ms: int
) -> ErrorResponse:
    """The response to a request that is refused; `code` is a google.rpc.Code."""
    headers = {"cache-control": "no-store"}
    if retry_after_ms > 0:
        headers["retry-after"] = str(math.ceil(retry_after_ms / 1000))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    content = {"code": code, "message": message, "details": [_detail(detail) for detail in details]}
    return ErrorResponse(status, headers, msgspec.json.encode(content))


def _detail(detail: AnyProto) -> dict[str, Any]:
    try:
        return MessageToDict(detail)
    except (TypeError, ValueError):
        # Of a type that is newer than this edge.
        return {"@type": detail.type_url, "value": detail.value}


def _packed(message: Message) -> AnyProto:
    packed = AnyProto()
    packed.Pack(message)
    return packed
