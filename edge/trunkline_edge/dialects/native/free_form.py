"""Limits of the free-form values (`google.protobuf.Struct`) in frames, the same as the router's.

Protobuf parsers reject messages nested deeper than 100, and one level of a Struct takes three messages. A
frame that an edge can barely parse would make a batch of the link unparseable, and so break the link of
all the edge's connections. Every codec therefore rejects deeper values; the limit leaves 28 messages for
those that the contract wraps around a Struct.

Each value costs as much as a hundred bytes of text, at the edge, at the router and for each form in which
clients receive it; that is why their number is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import ListValue, Struct
from trunkline.v1.frame_pb2 import ClientFrame

#: Nested objects and arrays, the outermost object included.
MAX_DEPTH = 24

#: Values at all levels of one object, itself excluded.
MAX_VALUES = 4096

C = TypeVar("C")


class UnfitValue(ValueError):
    """A free-form value is over a limit; `values` are those that were counted."""

    def __init__(self, problem: str, values: int) -> None:
        super().__init__(f"free-form values may {problem}")
        self.values = values


def count_in_object(value: dict[str, Any]) -> int:
    """Count the values in a decoded JSON object. Raises UnfitValue."""
    containers: list[dict[str, Any] | list[Any]] = [value]
    return _count(containers, len, _inside_json)


def count_in_frame(frame: ClientFrame) -> int:
    """Count the values in the Structs of a frame. Raises UnfitValue for one that is over a limit."""
    return sum(_count([struct], _size, _inside_struct) for struct in _structs(frame))


def _structs(frame: ClientFrame) -> Iterator[Struct | ListValue]:
    kind = frame.WhichOneof("frame")
    if kind in ("message", "edit"):
        parts = frame.message.parts if kind == "message" else frame.edit.parts
        for part in parts:
            if part.HasField("custom"):
                yield part.custom.data
    elif kind == "signal":
        yield frame.signal.data


def _count(level: list[C], size: Callable[[C], int], inside: Callable[[C], list[C]]) -> int:
    # Level by level, because recursion would overflow on hostile input.
    values = 0
    for _ in range(MAX_DEPTH):
        for container in level:
            values += size(container)
        if values > MAX_VALUES:
            raise UnfitValue(f"have at most {MAX_VALUES} values", values)
        level = [inner for container in level for inner in inside(container)]
        if not level:
            return values
    raise UnfitValue(f"be nested at most {MAX_DEPTH} levels deep", values)


def _inside_json(container: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    values = container.values() if isinstance(container, dict) else container
    return [value for value in values if isinstance(value, (dict, list))]


def _size(container: Struct | ListValue) -> int:
    return len(container.fields) if isinstance(container, Struct) else len(container.values)


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
