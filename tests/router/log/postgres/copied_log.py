"""Copies the rows of a log in SQLite into PostgreSQL's tables, so that the same reads can be compared."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
from trunkline_router.log.postgres.stored_text import to_column

TABLES = (
    "topics",
    "former_epochs",
    "messages",
    "events",
    "open_messages",
    "open_deltas",
    "receipts",
    "cancelled_messages",
    "erased",
    "deliveries",
    "dead_letters",
    "tenants",
    "tenant_keys",
    "api_keys",
    "revocations",
    "audit",
)
#: Columns with another name in PostgreSQL.
RENAMED = {"user": "user_name"}


async def copy_log(file: Path, dsn: str) -> None:
    """Replace the rows of the tables in a schema by those of a file that is not open."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"TRUNCATE {', '.join(TABLES)}")
        with closing(sqlite3.connect(file)) as db:
            for table in TABLES:
                rows = db.execute(f"SELECT * FROM {table}")
                columns = [RENAMED.get(each[0], each[0]) for each in rows.description]
                records = [
                    tuple(_converted(column, value) for column, value in zip(columns, row, strict=True))
                    for row in rows
                ]
                await connection.copy_records_to_table(table, records=records, columns=columns)
    finally:
        await connection.close()


def _converted(column: str, value: Any) -> Any:
    if column == "scopes":
        return json.loads(value)
    if not isinstance(value, str):
        return value
    return to_column(value).encode() if column == "reason" else to_column(value)
