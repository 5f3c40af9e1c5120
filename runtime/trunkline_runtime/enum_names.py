"""Short names of enum values: those that WebSocket frames use and HTTP requests may use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from google.protobuf.descriptor import EnumDescriptor


@cache
def enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """The short names of an enum's values by number, without the unspecified one."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values if value.number}


def enum_choices(enum: EnumDescriptor, numbers: Iterable[int] = ()) -> str:
    """Text that names values by both names: all except the unspecified one, unless `numbers` are given."""
    short = enum_names(enum)
    chosen = sorted(numbers) or list(short)
    return ", ".join(f"{short[number]} ({enum.values_by_number[number].name})" for number in chosen)
