"""Statements over any number of rows.

Python's sqlite3 releases the GIL for each step of a statement, and waits for it again while the event loop
is busy. The cost is therefore the number of steps, not of rows: one INSERT takes a whole batch, and a
SELECT returns one row with all results as JSON. Compared with `executemany`, a batch of 256 rows is 50
times faster under a busy loop and a third faster under an idle one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from trunkline_router.core.values.topics import EMPTY, Position, TopicKey
from trunkline_router.log.batch import Head, LogEnd

_MOST_ROWS = 1024


class _RowsStatement:
    """A statement over rows of parameters, in one flat list.

    Prepared in sizes that are powers of two, to keep prepared statements few; the remainder is padded with
    NULLs. The first parameter of a row must not be NULL.
    """

    def __init__(self, template: str, width: int) -> None:
        self._template = template
        self._width = width

    @cached_property
    def _texts(self) -> list[str]:
        row = "(" + ",".join("?" * self._width) + ")"
        sizes = [1 << power for power in range(_MOST_ROWS.bit_length())]
        return [self._template.replace("$rows", f"(VALUES {','.join([row] * size)})") for size in sizes]

    def chunks(self, flat: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        """Yield the statements to execute with their parameters."""
        step = _MOST_ROWS * self._width
        for start in range(0, len(flat), step):
            parameters = flat[start : start + step]
            rows = len(parameters) // self._width
            power = (rows - 1).bit_length()
            parameters += [None] * (((1 << power) - rows) * self._width)
            yield self._texts[power], parameters


class Write(_RowsStatement):
    """An INSERT, UPDATE or DELETE over the parameter rows that its text calls `$rows`.

    OR ROLLBACK makes a failure roll back the whole transaction. That spares SQLite the statement journal,
    which would double the pages written.
    """

    def run(self, db: sqlite3.Connection, flat: list[Any]) -> None:
        """Execute the statement for the rows in a flat list."""
        for text, parameters in self.chunks(flat):
            # executemany saves the step that reads the last rowid.
            db.executemany(text, (parameters,))


class Insert(Write):
    """An INSERT of all parameter rows."""

    def __init__(self, table: str, columns: Sequence[str]) -> None:
        values = ", ".join(f"column{n}" for n in range(1, len(columns) + 1))
        super().__init__(
            f"INSERT OR ROLLBACK INTO {table} ({', '.join(columns)})"
            f" SELECT {values} FROM $rows WHERE column1 IS NOT NULL",
            len(columns),
        )


class Select(_RowsStatement):
    """A SELECT of `columns` over the parameter rows that `source` calls `$rows`."""

    def __init__(self, columns: str, source: str, width: int) -> None:
        super().__init__(f"SELECT json_group_array(json_array({columns})) FROM {source}", width)

    def run(self, db: sqlite3.Connection, flat: list[Any]) -> list[list[Any]]:
        """Return the resulting rows, in no particular order."""
        rows: list[list[Any]] = []
        for text, parameters in self.chunks(flat):
            rows += json.loads(db.execute(text, parameters).fetchone()[0])
        return rows


#: The last seq of a log. Seqs have no gaps: a log holds every entry from `pruned` + 1 to its end.
END = (
    "max(pruned, coalesce((SELECT max(seq) FROM messages WHERE messages.topic_id = topics.topic_id), 0),"
    " coalesce((SELECT max(seq) FROM events WHERE events.topic_id = topics.topic_id), 0))"
)


def message_id_of(table: str) -> str:
    """Return the expression for the id of the message that a row refers to by topic_id and seq.

    The query joins `topics`.
    """
    return (
        f"CASE WHEN {table}.seq > topics.forked THEN topics.epoch ELSE"
        " (SELECT f.epoch FROM former_epochs AS f"
        f" WHERE f.topic_id = {table}.topic_id AND {table}.seq BETWEEN f.first_seq AND f.last_seq) END"
        f" || '-' || {table}.seq"
    )


#: CROSS JOIN makes SQLite keep this order of loops.
_HEADS = Select(
    f"column1, topic_id, epoch, {END}, pruned, forked",
    "$rows CROSS JOIN topics ON tenant = column2 AND agent = column3 AND platform = column4"
    " AND kind = column5 AND target = column6",
    6,
)
_NO_LOG = LogEnd(Head(0, EMPTY))


def look_up_heads(db: sqlite3.Connection, topics: Iterable[TopicKey]) -> list[Head]:
    """Read the heads of these topics, in order."""
    return [end.head for end in look_up_ends(db, topics)]


def look_up_ends(db: sqlite3.Connection, topics: Iterable[TopicKey]) -> list[LogEnd]:
    """Read the ends of these topics, in order."""
    flat: list[Any] = []
    count = 0
    for topic in topics:
        flat += (count, *topic)
        count += 1
    ends = [_NO_LOG] * count
    for index, topic_id, epoch, seq, pruned, forked in _HEADS.run(db, flat):
        ends[index] = LogEnd(Head(topic_id, Position(epoch, seq)), pruned, forked)
    return ends
