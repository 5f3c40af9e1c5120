"""The examples, tables of fields and close codes in docs/protocol.md match the contract."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import DESCRIPTOR as ADDRESS_FILE
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import Author, MessageState, Part
from trunkline_edge.core.rate_limits import VALUES_PER_MESSAGE
from trunkline_edge.dialects.codec import FREE_VALUES
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES
from trunkline_edge.dialects.native.handshake import CODECS
from trunkline_runtime.free_form import MAX_DEPTH, MAX_VALUES

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
JSON = CODECS["trunkline.v1.json"]

SIDES = {"client": ClientFrame.DESCRIPTOR, "server": ServerFrame.DESCRIPTOR}


def examples(side: str) -> list[str]:
    return re.findall(rf"^```json {side}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


def canonical(example: dict[str, Any], message: Descriptor) -> dict[str, Any]:
    """Return an example in protobuf's own JSON mapping, for ParseDict."""
    if message.name in {"ServerFrame", "Part"}:
        kind = message.fields_by_name[example["type"]]
        return {kind.name: canonical({k: v for k, v in example.items() if k != "type"}, kind.message_type)}
    return {name: canonical_value(value, message.fields_by_name[name]) for name, value in example.items()}


def canonical_value(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [canonical(each, field.message_type) for each in value]
    if field.enum_type is not None:
        names = field.enum_type.values_by_name
        return next(name for name in names if name.endswith(f"_{value.upper()}"))
    ours = field.message_type is not None and field.message_type.file.package == "trunkline.v1"
    if ours and not field.message_type.GetOptions().map_entry:
        return canonical(value, field.message_type)
    return value


@pytest.mark.parametrize("example", examples("client"))
def test_a_client_example_is_a_frame(example: str) -> None:
    assert JSON.decode(example.encode()).WhichOneof("frame") == json.loads(example)["type"]


@pytest.mark.parametrize("example", examples("server"))
def test_a_server_example_is_what_the_edge_would_write(example: str) -> None:
    frame = ParseDict(canonical(json.loads(example), ServerFrame.DESCRIPTOR), ServerFrame())
    assert JSON.encode(frame).decode() == example


@pytest.mark.parametrize("side", SIDES)
def test_every_frame_has_an_example(side: str) -> None:
    assert {json.loads(example)["type"] for example in examples(side)} == set(SIDES[side].fields_by_name)


@pytest.mark.parametrize(
    ("side", "frame"),
    [(side, field) for side, descriptor in SIDES.items() for field in descriptor.fields],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_frames_table_has_its_fields(side: str, frame: FieldDescriptor) -> None:
    section = re.search(
        rf"^### {side.title()}: `{frame.name}`$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert section, f"there is no section on {frame.name}"
    documented = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert documented == [field.name for field in frame.message_type.fields]


def test_the_table_of_objects_has_their_fields() -> None:
    documented: dict[str, list[str]] = {}
    section = PAGE.partition("## Objects")[2].partition("\n## ")[0]
    for name, field in re.findall(r"^\| (\w*) ?\| `(\w+)` \|", section, re.MULTILINE):
        current = documented.setdefault(name or list(documented)[-1], [])
        current.append(field)
    limits = ServerFrame.DESCRIPTOR.fields_by_name["connected"].message_type.fields_by_name["limits"]
    objects = [*ADDRESS_FILE.message_types_by_name.values(), Author.DESCRIPTOR, limits.message_type]
    assert documented == {each.name: [field.name for field in each.fields] for each in objects}


@pytest.mark.parametrize("part", list(Part.DESCRIPTOR.fields), ids=lambda part: part.name)
def test_the_table_of_parts_has_their_fields(part: FieldDescriptor) -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE.partition("## Parts")[2], re.MULTILINE)
    (row,) = [fields for types, fields in rows if f"`{part.name}`" in types.split(", ")]
    assert set(re.findall(r"`(\w+)`", row)) == {field.name for field in part.message_type.fields}


def test_every_state_of_a_message_is_named() -> None:
    row = re.search(r"^\| `state` \|.*$", PAGE, re.MULTILINE)
    assert row
    names = {name.removeprefix("MESSAGE_STATE_").lower() for name in MessageState.keys()}  # noqa: SIM118
    assert set(re.findall(r"`(\w+)`", row[0])) == names - {"unspecified"} | {"state"}


def test_the_table_of_close_codes_is_the_catalogues() -> None:
    documented = re.findall(r"^\| (\d{4}) \| `(\w+)` \|", PAGE, re.MULTILINE)
    closes = sorted((e.close_code, e.code) for e in catalogue.ENTRIES.values() if e.close_code)
    assert sorted((int(code), reason) for code, reason in documented) == closes


def test_the_limits_of_free_form_objects_and_frames_are_the_codecs() -> None:
    assert f"nested at most {MAX_DEPTH} levels deep and have at most {MAX_VALUES} values" in PAGE
    assert f"A frame has at most {MAX_FRAME_VALUES} values. One with more than {FREE_VALUES}" in PAGE
    assert f"one more message for every {VALUES_PER_MESSAGE} of them" in PAGE
    assert f"{MAX_DEPTH} levels deep" in PAGE
