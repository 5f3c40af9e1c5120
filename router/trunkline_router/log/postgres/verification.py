"""Verifies the log in a database: its invariants, and the checksums of its entries."""

from __future__ import annotations

from collections.abc import AsyncIterator

from trunkline_router.log.interface import BackupFailed
from trunkline_router.log.log_checks import MAX_PROBLEMS, counts, log_checks
from trunkline_router.log.migration.copied_log import COPYING
from trunkline_router.log.postgres.connector import Connection
from trunkline_router.log.postgres.schema import HAS_LOG, NO_LOG, SCHEMA_VERSION, UNFINISHED_COPY
from trunkline_router.log.stored_entries import is_intact

_CHECKS = log_checks(
    counts(least="least", greatest="greatest"), "SELECT reserved FROM id_blocks WHERE name = '{name}'"
)
_ENTRIES = """
    SELECT topic_id, seq, body, crc FROM {} AS r
    WHERE EXISTS (SELECT 1 FROM topics WHERE topics.topic_id = r.topic_id)
"""
#: Entries fetched at once.
_FETCHED = 200


async def check_database(connection: Connection) -> list[str]:
    """Verify a log as of one moment, whether a router runs or not. Returns its problems.

    Raises BackupFailed if there is no log, and asyncpg's errors.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        if not await connection.fetchval(HAS_LOG):
            raise BackupFailed(NO_LOG)
        version = await connection.fetchval("SELECT schema_version FROM installation")
        if version >= COPYING:
            raise BackupFailed(UNFINISHED_COPY)
        if version != SCHEMA_VERSION:
            return [f"schema version {version} is not this version's, {SCHEMA_VERSION}"]
        return [problem async for problem in _problems(connection)][:MAX_PROBLEMS]


async def _problems(connection: Connection) -> AsyncIterator[str]:
    for query, sentence in _CHECKS:
        for row in await connection.fetch(query):
            yield sentence.format(*row)
    for table in ("messages", "events"):
        async for topic_id, seq, body, crc in connection.cursor(_ENTRIES.format(table), prefetch=_FETCHED):
            if not is_intact(topic_id, seq, body, crc):
                yield f"entry {seq} of log {topic_id} in {table} does not have its checksum"
