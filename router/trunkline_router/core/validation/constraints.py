"""Kinds of constraints that comments of the contract state, each with its sentence and its check."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sized
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import EnumDescriptor
from trunkline_runtime.enum_names import enum_choices, enum_names
from trunkline_runtime.free_form import (
    MAX_DEPTH,
    MAX_MESSAGE_VALUES,
    MAX_VALUES,
    UnfitValue,
    count_in_struct,
    count_up_to_limit,
)


class Constraint(NamedTuple):
    """Constraint of a field, or of a message's size: the sentence in its comment, and the check."""

    #: Sentence after "Limits:" in the comment, without the full stop.
    sentence: str
    #: Returns the problem with a value, or None.
    problem: Callable[[Any], str | None]
    #: The field must be set; for fields that are messages, which have no default to check.
    required: bool = False


_ID = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")
_WORD = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]{1,256}")
_DIGEST = re.compile("[0-9a-f]{64}")
_TOKEN = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")


def _id_problem(value: str) -> str | None:
    # Checked first, so that the cache keeps no long values.
    if len(value) > 128:
        return f"is {len(value)} characters long; at most 128 are allowed"
    return _short_id_problem(value)


@lru_cache(maxsize=4096)
def _short_id_problem(value: str) -> str | None:
    if _ID.fullmatch(value):
        return None
    if not value:
        return "must be set"
    return "may hold no white space, no control characters, no '/' and no ':'"


def _optional_id_problem(value: str) -> str | None:
    return _id_problem(value) if value else None


def _token_problem(value: str) -> str | None:
    # Most tokens are printable, which is quicker to find out.
    if (value.isprintable() and 0 < len(value) <= 128) or _TOKEN.fullmatch(value):
        return None
    if not value:
        return "must be set"
    if len(value) > 128:
        return f"is {len(value)} characters long; at most 128 are allowed"
    return "may hold no control characters"


def _optional_token_problem(value: str) -> str | None:
    return _token_problem(value) if value else None


def _word_problem(value: str) -> str | None:
    if _WORD.fullmatch(value):
        return None
    return "must have 1 to 256 characters, and no white space or control characters among them"


def _digest_problem(value: str) -> str | None:
    return None if _DIGEST.fullmatch(value) else "must be 64 characters of lower-case hex"


ID = Constraint("1 to 128 characters; no white space, no control characters, no `/`, no `:`", _id_problem)
OPTIONAL_ID = Constraint(
    "empty, or 1 to 128 characters; no white space, no control characters, no `/`, no `:`",
    _optional_id_problem,
)
TOKEN = Constraint("1 to 128 characters; no control characters", _token_problem)
OPTIONAL_TOKEN = Constraint("empty, or 1 to 128 characters; no control characters", _optional_token_problem)
WORD = Constraint("1 to 256 characters; no white space, no control characters", _word_problem)
DIGEST = Constraint("64 characters of lower-case hex", _digest_problem)
REQUIRED = Constraint("required", lambda value: None, required=True)


def at_most(limit: int, unit: str) -> Constraint:
    """At most `limit` characters, bytes or items."""

    def problem(value: Sized) -> str | None:
        return None if len(value) <= limit else f"has {len(value)} {unit}; at most {limit} are allowed"

    return Constraint(f"at most {limit} {unit}", problem)


def items(low: int, high: int) -> Constraint:
    """From `low` to `high` items; the sentence leaves out a `low` of 0."""

    def problem(value: Sized) -> str | None:
        count = len(value)
        return None if low <= count <= high else f"has {count} items; {low} to {high} are allowed"

    return Constraint(f"{low} to {high} items" if low else f"at most {high} items", problem)


def characters(low: int, high: int) -> Constraint:
    """From `low` to `high` characters of any kind."""

    def problem(value: str) -> str | None:
        count = len(value)
        return None if low <= count <= high else f"has {count} characters; {low} to {high} are allowed"

    return Constraint(f"{low} to {high} characters", problem)


def one_of(sentence: str, values: Collection[object]) -> Constraint:
    """One of `values`, which the sentence names."""

    def problem(value: object) -> str | None:
        return None if value in values else f"must be {sentence}"

    return Constraint(sentence, problem)


def each(constraint: Constraint, low: int, high: int) -> Constraint:
    """From `low` to `high` items, each within another constraint."""
    count = items(low, high)

    def problem(value: Any) -> str | None:
        problems = (
            f"item {index} {found}" for index, item in enumerate(value) if (found := constraint.problem(item))
        )
        return count.problem(value) or next(problems, None)

    return Constraint(f"{count.sentence}; each {constraint.sentence}", problem)


def keyed(constraint: Constraint, limit: int) -> Constraint:
    """At most `limit` entries of a map, each with a key within another constraint."""

    def problem(value: Mapping[str, Any]) -> str | None:
        if len(value) > limit:
            return f"has {len(value)} entries; at most {limit} are allowed"
        problems = (f"key {found}" for key in value if (found := constraint.problem(key)))
        return next(problems, None)

    return Constraint(f"at most {limit} entries; keys of {constraint.sentence}", problem)


def number(low: int, high: int) -> Constraint:
    """A number from `low` to `high`; the sentence leaves out a `low` of 0."""

    def problem(value: int) -> str | None:
        return None if low <= value <= high else f"is {value}; {low} to {high} are allowed"

    return Constraint(f"{low} to {high}" if low else f"at most {high}", problem)


def named(enum: EnumDescriptor) -> Constraint:
    """A value of an enum other than the unspecified one."""
    constraint = _among(enum, enum_names(enum), "required; a named value")
    return constraint._replace(required=True)


def named_or_unset(enum: EnumDescriptor) -> Constraint:
    """A value of an enum, the unspecified one included."""
    return _among(enum, {0, *enum_names(enum)}, "a named value, or not set")


def named_from(enum: EnumDescriptor, low: int, high: int) -> Constraint:
    """A value of an enum with a number from `low` to `high`."""
    return _among(enum, range(low, high + 1), f"{low} to {high}")


def _among(enum: EnumDescriptor, numbers: Collection[int], sentence: str) -> Constraint:
    text = f"must be one of {enum_choices(enum, {*numbers} - {0})}"
    return Constraint(sentence, lambda value: None if value in numbers else text)


def size(limit: int) -> Constraint:
    """At most this many bytes when serialized; the check takes the size, not the message."""

    def problem(count: int) -> str | None:
        return None if count <= limit else f"is {count} bytes large; at most {limit} are allowed"

    return Constraint(f"at most {limit} bytes", problem)


def _free_form_problem(value: Any) -> str | None:
    try:
        count_in_struct(value)
    except UnfitValue as unfit:
        return unfit.problem
    return None


FREE_FORM = Constraint(f"at most {MAX_DEPTH} levels deep; at most {MAX_VALUES} values", _free_form_problem)


def with_values(constraint: Constraint, part_of: Callable[[Any], Any] = lambda item: item) -> Constraint:
    """Parts, or items that contain one, with at most MAX_MESSAGE_VALUES free-form values together."""

    def problem(value: Any) -> str | None:
        if found := constraint.problem(value):
            return found
        if len(value) * MAX_VALUES <= MAX_MESSAGE_VALUES:
            return None
        values = 0
        for item in value:
            part = part_of(item)
            if part.HasField("custom"):
                # One over a limit of its own is reported with its place, unless the sum is over this one.
                values += count_up_to_limit(part.custom.data)
                if values > MAX_MESSAGE_VALUES:
                    return f"have more than {MAX_MESSAGE_VALUES} values in `data` together"
        return None

    return Constraint(
        f"{constraint.sentence}; at most {MAX_MESSAGE_VALUES} values in `data` together", problem
    )


def _attributes_problem(value: Mapping[str, str]) -> str | None:
    if len(value) > 32:
        return f"has {len(value)} entries; at most 32 are allowed"
    for key, text in value.items():
        if not 1 <= len(key) <= 64:
            return f"has a key of {len(key)} characters; 1 to 64 are allowed"
        if len(text) > 1024:
            return f"has a value of {len(text)} characters; at most 1024 are allowed"
    return None


ATTRIBUTES = Constraint(
    "at most 32 entries; keys of 1 to 64 characters; values of at most 1024 characters",
    _attributes_problem,
)
