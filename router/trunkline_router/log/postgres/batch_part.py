"""A part of the statement that writes a batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from trunkline_router.log.batch import Batch

_PARAMETER = re.compile("%([0-9]+)")


class Part(NamedTuple):
    """Common table expressions that write one kind of rows.

    All parts of a statement see the tables as they were before it, and no two of them may change the same
    row: one of the changes would be lost. SQLite's engine writes a batch with one statement after the other,
    and this one must leave the same rows. So what one kind of rows takes from another is decided first: by
    `columns`, from the batch alone, or by a text for batches that have the other kind, too.
    """

    #: %1 stands for its first parameter.
    text: str
    #: Returns the parameters, most of which are columns.
    columns: Callable[[Batch], Sequence[object]]


def joined(*parts: Part) -> Part:
    """Return one part for kinds of rows that mostly come together: fewer statements must be prepared."""
    texts = []
    first = 1
    for part in parts:
        texts.append(number_parameters(part.text, first, "%"))
        first += parameters_in(part.text)
    columns = [part.columns for part in parts]
    return Part(",\n".join(texts), lambda batch: [value for each in columns for value in each(batch)])


def parameters_in(text: str) -> int:
    """Count the parameters of a part."""
    return max(int(number) for number in _PARAMETER.findall(text))


def number_parameters(text: str, first: int, sign: str = "$") -> str:
    """Replace %1, %2, … in the text of a part by the numbers from `first` on."""
    return _PARAMETER.sub(lambda match: f"{sign}{first - 1 + int(match[1])}", text)


def columns_of(flat: list[Any], width: int) -> list[list[Any]]:
    """Return the columns of flat rows."""
    return [flat[column::width] for column in range(width)]


def transposed(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Return the columns of rows, of which there may be none."""
    return list(map(list, zip(*rows, strict=True))) or [[] for _ in range(width)]
