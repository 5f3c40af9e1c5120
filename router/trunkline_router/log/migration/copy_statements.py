"""SQL by which a copy reads and writes the tables of a log, for every engine.

Parameters have names: `:tenant`, `:audit_id`, `:log_key`, and `:k0`, `:k1`, … for the values of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trunkline_router.log.migration.copied_log import RowKey
from trunkline_router.log.migration.copied_tables import (
    AUDIT,
    EVENTS,
    MESSAGES,
    OPEN_DELTAS,
    TENANT_KEYS,
    CopiedTable,
    Row,
    RowScope,
    tables_of,
)

_OF_TENANT = "tenant = :tenant"
_LOGS = f"(SELECT topic_id FROM topics WHERE {_OF_TENANT})"
OF_EPOCH = (
    f"(epoch IN (SELECT epoch FROM topics WHERE {_OF_TENANT})"
    f" OR epoch IN (SELECT epoch FROM former_epochs WHERE topic_id IN {_LOGS}))"
)
_CONDITIONS = {
    RowScope.TENANT: _OF_TENANT,
    RowScope.LOG: f"topic_id IN {_LOGS}",
    RowScope.EPOCH: OF_EPOCH,
}
_BY_ARRIVAL = (MESSAGES, EVENTS)
_DELTAS = (
    "(SELECT *, row_number() OVER (PARTITION BY topic_id, seq ORDER BY delta_id) AS ordinal FROM open_deltas)"
)
_ABOVE = {AUDIT.name: "id > :audit_id", TENANT_KEYS.name: "(tenant <> '' OR generation > :log_key)"}


class CopyStatements(NamedTuple):
    """Statements of one engine."""

    #: Name of the column `user_name`.
    user_column: str
    #: Joins logs and their rows so that nothing is sorted: logs by id, then the rows of each by an index.
    join: str
    #: Column by which messages and events are in the order of the file; empty for none.
    rowid: str

    def key_of(self, table: CopiedTable, tenant: str | None) -> tuple[str, ...]:
        """Return the columns by which `selecting` orders rows: those of the table's key, or the rowid."""
        return (self.rowid,) if tenant is None and self.rowid and table in _BY_ARRIVAL else table.key

    def selecting(self, table: CopiedTable, tenant: str | None, *, is_continued: bool) -> str:
        """Return a query for rows, after a key if it continues; a rowid that is the key comes last."""
        key = self.key_of(table, tenant)
        columns = [f"r.{self._name(each)}" for each in table.columns]
        if key != table.key:
            columns.append(f"r.{self.rowid}")
        source = f"{_DELTAS if table is OPEN_DELTAS else table.name} AS r"
        order = [f"r.{self._name(each)}" for each in key]
        conditions = []
        if tenant is not None and table.scope is RowScope.LOG:
            source = f"topics AS t {self.join} {source} ON r.topic_id = t.topic_id"
            order[0] = "t.topic_id"
            conditions.append(f"t.{_OF_TENANT}")
            if is_continued:
                conditions.append("t.topic_id >= :k0")
        elif tenant is not None:
            conditions.append(_CONDITIONS[table.scope])
        if is_continued:
            conditions.append(f"({', '.join(order)}) > ({', '.join(f':k{n}' for n in range(len(order)))})")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {', '.join(columns)} FROM {source}{where} ORDER BY {', '.join(order)}"

    def inserted_columns(self, table: CopiedTable) -> list[str]:
        """Return the columns of a row to insert, in order."""
        # Deltas are inserted in the order of their ordinals, and their ids rise.
        return [self._name(each) for each in table.columns if each != "ordinal"]

    def _name(self, column: str) -> str:
        return self.user_column if column == "user_name" else column


def selected(tenant: str | None, after: RowKey | None) -> dict[str, object]:
    """Return the parameters of `selecting`."""
    return {"tenant": tenant} | {f"k{n}": value for n, value in enumerate(after or ())}


def counting(table: CopiedTable, tenant: str | None) -> str:
    """Return a query for the number of rows."""
    where = "" if tenant is None else f" WHERE {_CONDITIONS[table.scope]}"
    return f"SELECT count(*) FROM {table.name}{where}"


def deleting_all(tenant: str | None) -> list[str]:
    """Return statements that delete all rows of a tenant, or of the log: those of logs before the logs."""
    tables = sorted(tables_of(tenant), key=lambda table: table.scope is RowScope.TENANT)
    return [deleting(table, tenant) for table in tables]


def deleting(table: CopiedTable, tenant: str | None) -> str:
    """Return a statement that deletes rows of a tenant, or all, above `audit_id` and `log_key`."""
    conditions = []
    if tenant is not None:
        condition = _CONDITIONS[table.scope]
        conditions.append(f"({condition} OR tenant = '')" if table is TENANT_KEYS else condition)
    if table.name in _ABOVE:
        conditions.append(_ABOVE[table.name])
    return f"DELETE FROM {table.name}{' WHERE ' if conditions else ''}{' AND '.join(conditions)}"


def without_ordinals(table: CopiedTable, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows with the columns that are inserted."""
    return [(*row[:2], *row[3:]) for row in rows] if table is OPEN_DELTAS else rows
