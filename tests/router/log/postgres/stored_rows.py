"""Contents of all tables of a schema, to compare."""

from __future__ import annotations

from collections import defaultdict

from tests.support.postgres import PostgresServer

#: Changed without a write to the log.
LEASES = "leases"


def stored_rows(server: PostgresServer, schema: str) -> dict[str, list[str]]:
    """Read the rows of each table as text, sorted; tables without rows are left out."""
    tables = server.execute(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'").split()
    queries = [
        f"SELECT '{table}', to_jsonb(t)::text FROM {schema}.\"{table}\" AS t"
        for table in tables
        if table != LEASES
    ]
    rows: dict[str, list[str]] = defaultdict(list)
    for line in server.execute(f"{' UNION ALL '.join(queries)} ORDER BY 1, 2").splitlines():
        table, _, row = line.partition("|")
        rows[table].append(row)
    return dict(rows)
