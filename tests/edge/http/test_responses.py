"""Encoding of response messages as JSON."""

from __future__ import annotations

import json

import pytest
from google.protobuf.json_format import MessageToDict, Parse
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.history_service_pb2 import GetMessageResponse
from trunkline_edge.http.bindings import Binding
from trunkline_edge.http.json_encode import response_json

from tests.edge.http.request_builders import BINDINGS, messages

ANSWERS = {binding.method.output_type.full_name: binding for binding in BINDINGS}


@pytest.mark.parametrize("binding", ANSWERS.values(), ids=lambda binding: binding.method.output_type.name)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_response_equals_that_of_json_format(binding: Binding, data: st.DataObject) -> None:
    message: Message = data.draw(messages(binding.method.output_type))
    written = response_json(message)
    assert json.loads(written) == MessageToDict(message, always_print_fields_with_no_presence=True)
    assert Parse(written, type(message)()) == message


def test_fields_without_presence_are_always_there_and_64_bits_are_text() -> None:
    written = json.loads(response_json(GetMessageResponse(message={"id": "m", "position": {"epoch": "e"}})))
    assert written["message"]["position"] == {"epoch": "e", "seq": "0"}
    assert written["message"]["parts"] == []
    assert "updatedAt" not in written["message"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_lacks_becomes_null(number: float) -> None:
    answer = GetMessageResponse()
    data = answer.message.parts.add().custom.data
    data.update({"a": {"b": [1, {"c": 2}]}})
    data["a"]["b"].values[1].struct_value["c"] = number
    before = GetMessageResponse()
    before.CopyFrom(answer)
    written = json.loads(response_json(answer))
    assert written["message"]["parts"][0]["custom"]["data"] == {"a": {"b": [1, {"c": None}]}}
    assert answer.SerializeToString() == before.SerializeToString()


def test_one_field_may_be_the_whole_answer() -> None:
    field = GetMessageResponse.DESCRIPTOR.fields_by_name["message"]
    assert json.loads(response_json(GetMessageResponse(message={"id": "m"}), field))["id"] == "m"
    assert response_json(GetMessageResponse(), field) == b"null"


def test_an_enum_value_that_is_newer_than_the_edge_stays_a_number() -> None:
    assert json.loads(response_json(GetMessageResponse(message={"state": 77})))["message"]["state"] == 77
