"""Warns while the database might lose what it confirms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import asyncpg
import structlog

from trunkline_router.log.interface import LogUnavailable

_log = structlog.get_logger()

#: Interval between looks at the database's settings and standbys.
INTERVAL_S = 60.0

#: What any role can see: of a standby, only that there is one, and its name. Backups and logical subscribers
#: receive the same stream, but nobody fails over to them.
_STATE = """
    SELECT current_setting('fsync')::boolean AND current_setting('full_page_writes')::boolean AS is_durable,
        current_setting('synchronous_standby_names') <> '' AS is_synchronous,
        EXISTS (
            SELECT FROM pg_stat_replication AS receiver
            WHERE application_name NOT IN ('pg_basebackup', 'pg_receivewal') AND NOT EXISTS (
                SELECT FROM pg_replication_slots
                WHERE active_pid = receiver.pid AND slot_type = 'logical'
            )
        ) AS has_standbys,
        EXISTS (SELECT FROM pg_stat_replication) AS has_receivers
"""
_UNSAFE = (
    "PostgreSQL runs with fsync or full_page_writes off: a crash of its machine may lose or damage"
    " acknowledged messages; turn both on"
)
_ASYNCHRONOUS = (
    "all standbys of PostgreSQL are asynchronous: a failover to one may lose acknowledged messages; to"
    " confirm only what a standby has, set synchronous_standby_names, as 'ANY 1 (*)'"
)
_WAITING = (
    "PostgreSQL commits nothing: synchronous_standby_names is set, and no standby is connected; start one, or"
    " empty that setting"
)


class DurabilityWatch:
    """Looks at the database at once, then every minute; logs each problem once, and its end."""

    def __init__(self, fetch: Callable[[str], Awaitable[Sequence[asyncpg.Record]]]) -> None:
        """`fetch` runs a query, and may raise LogUnavailable."""
        self._fetch = fetch
        self._problems: frozenset[str] = frozenset()
        self._task = asyncio.create_task(self._run())

    async def look(self) -> None:
        """Look now. Raises LogUnavailable."""
        (state,) = await self._fetch(_STATE)
        problems = frozenset(_problems(state))
        for problem in problems - self._problems:
            _log.warning(problem)
        for problem in self._problems - problems:
            _log.info("no longer true of PostgreSQL", problem=problem)
        self._problems = problems

    async def close(self) -> None:
        """Stop looking."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            # Others log that. A minute later is soon enough.
            with suppress(LogUnavailable):
                await self.look()
            await asyncio.sleep(INTERVAL_S)


def _problems(state: asyncpg.Record) -> list[str]:
    problems = []
    if not state["is_durable"]:
        problems.append(_UNSAFE)
    if state["has_standbys"] and not state["is_synchronous"]:
        problems.append(_ASYNCHRONOUS)
    if state["is_synchronous"] and not state["has_receivers"]:
        problems.append(_WAITING)
    return problems
