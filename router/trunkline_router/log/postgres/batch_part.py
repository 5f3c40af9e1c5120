"""A part of the statement that writes a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from trunkline_router.log.batch import Batch


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


def columns_of(flat: list[Any], width: int) -> list[list[Any]]:
    """Return the columns of flat rows."""
    return [flat[column::width] for column in range(width)]


def transposed(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Return the columns of rows, of which there may be none."""
    return list(map(list, zip(*rows, strict=True))) or [[] for _ in range(width)]
