"""Depth limit of the free-form values (`google.protobuf.Struct`) in frames.

Protobuf parsers reject messages nested deeper than 100, and one level of a Struct takes three messages. A
frame that an edge can barely parse would make a batch of the link unparseable, and so break the link of
all the edge's connections. Every codec therefore rejects deeper values; the limit leaves 28 messages for
those that the contract wraps around a Struct.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import ListValue, Struct
from trunkline.v1.frame_pb2 import ClientFrame

#: Nested objects and arrays, the outermost object included.
MAX_DEPTH = 24

PROBLEM = f"free-form values may be nested at most {MAX_DEPTH} levels deep"

C = TypeVar("C")


def object_too_deep(value: dict[str, Any]) -> bool:
    """Whether a decoded JSON object is nested deeper than MAX_DEPTH."""
    containers: list[dict[str, Any] | list[Any]] = [value]
    return _too_deep(containers, _inside_json)


def frame_too_deep(frame: ClientFrame) -> bool:
    """Whether a Struct in the frame is nested deeper than MAX_DEPTH."""
    structs: list[Struct | ListValue] = []
    kind = frame.WhichOneof("frame")
    if kind in ("message", "edit"):
        parts = frame.message.parts if kind == "message" else frame.edit.parts
        structs += [part.custom.data for part in parts if part.HasField("custom")]
    elif kind == "signal":
        structs.append(frame.signal.data)
    return _too_deep(structs, _inside_struct)


def _too_deep(level: list[C], inside: Callable[[C], list[C]]) -> bool:
    # Level by level, because recursion would overflow on hostile input.
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [inner for container in level for inner in inside(container)]
    return bool(level)


def _inside_json(container: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, (dict, list))]


def _inside_struct(container: Struct | ListValue) -> list[Struct | ListValue]:
    values = container.fields.values() if isinstance(container, Struct) else container.values
    containers: list[Struct | ListValue] = []
    for value in values:
        kind = value.WhichOneof("kind")
        if kind == "struct_value":
            containers.append(value.struct_value)
        elif kind == "list_value":
            containers.append(value.list_value)
    return containers
