"""Limits of free-form values (`google.protobuf.Struct`), which edge and router enforce alike.

Protobuf parsers reject messages nested deeper than 100, and one level of a Struct takes three messages. A
frame that an edge can barely parse would make a batch of the link unparseable, and so break the link of
all the edge's connections. The depth limit leaves 28 messages for those that the contract wraps around a
Struct.

Each value costs as much as a hundred bytes of text: to build, to check, and to encode for each form in which
clients receive it. That is why their number is limited. JSON as text costs no more than other text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import ListValue, Struct

#: Nested objects and arrays, the outermost object included.
MAX_DEPTH = 24

#: Values at all levels of one object, itself excluded.
MAX_VALUES = 4096

#: Values of all the objects in one message; at an edge also all values in a frame.
MAX_MESSAGE_VALUES = 2 * MAX_VALUES

#: A SignalFrame in protobuf.
MAX_SIGNAL_BYTES = 16384

C = TypeVar("C")


class UnfitValue(ValueError):
    """A free-form value is over a limit: `problem` says over which, `values` are those that were counted."""

    def __init__(self, problem: str, values: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.values = values


def count_in_object(value: dict[str, Any]) -> int:
    """Count the values in a decoded JSON object. Raises UnfitValue."""
    outermost: dict[str, Any] | list[Any] = value
    return _count(outermost, len, _inside_json)


def count_in_struct(struct: Struct) -> int:
    """Count the values in a Struct. Raises UnfitValue."""
    outermost: Struct | ListValue = struct
    return _count(outermost, _size, _inside_struct)


def count_up_to_limit(struct: Struct) -> int:
    """Count the values in a Struct; of one over a limit, those at the levels before."""
    try:
        return count_in_struct(struct)
    except UnfitValue as unfit:
        return unfit.values


def _count(outermost: C, size: Callable[[C], int], inside: Callable[[C], list[C]]) -> int:
    # Level by level, because recursion would overflow on hostile input. The count stops at the limit.
    level = [outermost]
    values = 0
    for _ in range(MAX_DEPTH):
        for container in level:
            values += size(container)
        if values > MAX_VALUES:
            raise UnfitValue(f"has more than {MAX_VALUES} values", values)
        level = [inner for container in level for inner in inside(container)]
        if not level:
            return values
    raise UnfitValue(f"is nested more than {MAX_DEPTH} levels deep", values)


def _inside_json(container: dict[str, Any] | list[Any]) -> list[Any]:
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
