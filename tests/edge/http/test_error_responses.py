"""HTTP responses for every entry of the catalogue."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from trunkline.v1.catalogue import ENTRIES, Entry
from trunkline_edge.http.error_responses import failure_response
from trunkline_edge.http.router_client import CallFailed
from trunkline_edge.http_errors import HTTP_STATUS, http_status

#: Values for the placeholders of all entries.
VALUES = {name: "7" for entry in ENTRIES.values() for name in re.findall(r"\{(\w+)\}", entry.text)}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.code)
def test_each_entry_of_the_catalogue_keeps_its_status_text_and_code(entry: Entry) -> None:
    refused = entry.refused(**VALUES)
    response = failure_response(refused)
    body = json.loads(response.body)
    status = entry.grpc_status or grpc.StatusCode.UNAVAILABLE.value[0]
    assert (body["code"], body["message"]) == (status, str(refused))
    assert response.status_code == (entry.http_status or 503)
    assert response.headers["content-type"] == "application/json"
    info: dict[str, Any] = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"], info["metadata"]) == (entry.code, "trunkline", VALUES)
    assert len(body["details"]) == 1 + entry.retryable
    if entry.retryable:
        assert body["details"][1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
        assert float(body["details"][1]["retryDelay"][:-1]) * 1000 == entry.retry_after_ms
    expected = str(math.ceil(entry.retry_after_ms / 1000)) if entry.retry_after_ms else None
    assert response.headers.get("retry-after") == expected
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)


@pytest.mark.parametrize("code", [code for code in Code.values() if code])
def test_an_unknown_entry_gets_the_status_of_its_code(code: int) -> None:
    status = Status(code=code, message="text")
    status.details.add().Pack(ErrorInfo(reason="NEWER_THAN_THIS_EDGE"))
    assert http_status(status) == HTTP_STATUS[code]


def test_a_detail_that_is_newer_than_the_edge_is_passed_on() -> None:
    detail = AnyProto(type_url="type.googleapis.com/some.NewThing", value=b"\xff")
    body = json.loads(failure_response(CallFailed(Status(code=3, message="text", details=[detail]))).body)
    assert body["details"] == [{"@type": detail.type_url, "value": "/w=="}]
