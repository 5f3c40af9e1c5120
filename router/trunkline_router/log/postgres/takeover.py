"""Takes the log over, once nobody owns it or its owner has lost it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
import structlog

from trunkline_router.log.postgres.connector import Connection
from trunkline_router.log.postgres.lease import clock_s, sureness_s

_log = structlog.get_logger()

#: Interval at which a standby looks at the owner's lease.
POLL_S = 0.25
#: A look without an answer for so long ends its connection: the server may hang, and another be the primary.
LOOK_TIMEOUT_S = 5.0
#: Added to a time that must have passed: clocks of two machines run at different rates.
SLACK_S = 0.25
#: Time that a takeover waits for the owner's commit under way; its sessions are ended then.
_LOCK_TIMEOUT_MS = 300
#: Rows of former routers that are kept for people. A router whose own row is missing takes that for a loss of
#: commits, unless it is older than a day.
_KEPT_ROUTERS = 100

#: The sessions of a router have this name, by which others see whether it has any. With the installation:
#: others may be in schemas of the same database.
_SESSION_NAME = "'trunkline ' || left(installation_id, 8) || ' ' || {}"
_NAME_SESSIONS = f"SELECT {_SESSION_NAME.format('$1::bigint')} FROM installation"
_OWNER = f"""
    SELECT incarnation, alive, address, boot_id, until, seconds AS lease_s,
        extract(epoch FROM clock_timestamp() - until)::float8 AS overdue_s,
        EXISTS (
            SELECT FROM pg_stat_activity, installation
            WHERE application_name = {_SESSION_NAME.format("incarnation")} AND datname = current_database()
        ) AS is_connected
    FROM slots LEFT JOIN routers USING (incarnation) LEFT JOIN leases USING (incarnation)
    WHERE slot = 0
"""
_LOCK_SLOT = "SELECT incarnation FROM slots WHERE slot = 0 FOR UPDATE"
#: Waits for the owner's renewal and commit under way.
_LOCK_ROUTER = "SELECT 1 FROM routers WHERE incarnation = $1 FOR UPDATE"
_UNTIL = "SELECT until FROM leases WHERE incarnation = $1"
_END = "UPDATE routers SET alive = false WHERE incarnation = $1"
_BEGIN = "INSERT INTO routers (boot_id, address) VALUES ($1, $2) RETURNING incarnation"
_LEASE = "INSERT INTO leases VALUES ($1, clock_timestamp() + make_interval(secs => $2), $2)"
_CLAIM = "UPDATE slots SET incarnation = $1, token = token + 1 WHERE slot = 0"
_FORGET = """
    DELETE FROM routers WHERE NOT alive AND started_at < now() - interval '1 day'
    AND incarnation NOT IN (SELECT incarnation FROM routers ORDER BY incarnation DESC LIMIT $1)
"""
_ABANDON = """
    WITH router AS (UPDATE routers SET alive = false WHERE boot_id = $1 AND alive RETURNING incarnation)
    UPDATE slots SET incarnation = NULL FROM router WHERE slots.incarnation = router.incarnation
"""
#: Not while one of them waits for a synchronous standby, as those of a successor would, too.
_END_SESSIONS = f"""
    WITH sessions AS MATERIALIZED (
        SELECT pid, wait_event FROM pg_stat_activity, installation
        WHERE application_name = {_SESSION_NAME.format("$1::bigint")} AND datname = current_database()
    )
    SELECT pg_terminate_backend(pid) FROM sessions
    WHERE NOT EXISTS (SELECT FROM sessions WHERE wait_event = 'SyncRep')
"""


class Owner(NamedTuple):
    """The router that owns the log, as a standby sees it."""

    incarnation: int
    alive: bool
    address: str
    boot_id: str
    #: End of its lease, by the database's clock, which changes with each renewal.
    until: object
    #: Length of its lease; this router's setting may differ.
    lease_s: float
    #: Time since that end; negative while the lease is in force.
    overdue_s: float
    #: It has a session with the database.
    is_connected: bool


class Ownership(NamedTuple):
    """A new incarnation that owns the log."""

    incarnation: int
    #: Name for its sessions.
    session_name: str
    #: Time before it was acquired, by the clock of leases.
    acquired_at: float


@dataclass(slots=True)
class _Observation:
    """An owner's lease, and since when it has been the same."""

    incarnation: int
    until: object
    since: float


class Standby:
    """Watches the owner of the log, and takes its place."""

    def __init__(
        self, boot_id: str, address: str, lease_s: float, clock: Callable[[], float] = clock_s
    ) -> None:
        self._boot_id = boot_id
        self._address = address
        self._lease_s = lease_s
        self._clock = clock
        #: The owner at the last look; None for none.
        self.owner: Owner | None = None
        self._observed: _Observation | None = None
        self._reported = 0
        #: Warnings, each with the incarnation that it was about.
        self._warned: set[tuple[str, int]] = set()

    async def try_to_own(self, connection: Connection) -> Ownership | None:
        """Take the log if nobody owns it any more; else return None. Call it every POLL_S.

        Raises what asyncpg raises; the log may be owned then by an incarnation that nobody uses, which loses
        it like any other.
        """
        owner = self.owner = _owner(await connection.fetchrow(_OWNER, timeout=LOOK_TIMEOUT_S))
        if owner is not None and owner.alive:
            if not self._has_lost(owner):
                self._report(owner)
                return None
            self._warn_once(
                "the owner of the log is gone; taking it over",
                owner,
                lease_ended_s_ago=round(owner.overdue_s, 2),
                has_sessions=owner.is_connected,
            )
        acquired_at = self._clock()
        try:
            if (incarnation := await self._take(connection, owner)) is None:
                return None
        except asyncpg.LockNotAvailableError:
            # It is frozen in the middle of a commit; or the server is.
            if owner is not None:
                if await connection.fetch(_END_SESSIONS, owner.incarnation):
                    self._warn_once("ended the sessions of the owner", owner)
                else:
                    self._warn_once("the database does not complete a commit of the owner; waiting", owner)
            return None
        session_name: str = await connection.fetchval(_NAME_SESSIONS, incarnation)
        return Ownership(incarnation, session_name, acquired_at)

    def _has_lost(self, owner: Owner) -> bool:
        """Whether an owner is not sure any more that it owns the log, and never will be again."""
        now = self._clock()
        seen = self._observed
        if seen is None or (seen.incarnation, seen.until) != (owner.incarnation, owner.until):
            seen = self._observed = _Observation(owner.incarnation, owner.until, now)
        unsure_s = sureness_s(owner.lease_s) + SLACK_S
        unchanged_s = now - seen.since
        # The database's clock may be set while the owner lives, or be behind the end of its lease for long.
        if owner.overdue_s > unsure_s and not owner.is_connected:
            return True
        has_ended = (
            owner.overdue_s > SLACK_S or not owner.is_connected or unchanged_s > owner.lease_s + SLACK_S
        )
        return has_ended and unchanged_s > unsure_s

    async def _take(self, connection: Connection, owner: Owner | None) -> int | None:
        """Take the place of an owner, or of nobody, unless that has changed meanwhile."""
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
            former = await connection.fetchval(_LOCK_SLOT)
            if former != (None if owner is None else owner.incarnation):
                return None
            if owner is not None and owner.alive:
                await connection.execute(_LOCK_ROUTER, owner.incarnation)
                # Read again: a renewal may have been under way.
                if await connection.fetchval(_UNTIL, owner.incarnation) != owner.until:
                    return None
                await connection.execute(_END, owner.incarnation)
            incarnation: int = await connection.fetchval(_BEGIN, self._boot_id, self._address)
            await connection.execute(_LEASE, incarnation, self._lease_s)
            await connection.execute(_CLAIM, incarnation)
            await connection.execute(_FORGET, _KEPT_ROUTERS)
        return incarnation

    def _warn_once(self, event: str, owner: Owner, **fields: object) -> None:
        if (event, owner.incarnation) not in self._warned:
            self._warned.add((event, owner.incarnation))
            _log.warning(event, owner=owner.address, incarnation=owner.incarnation, **fields)

    def _report(self, owner: Owner) -> None:
        if self._reported != owner.incarnation:
            self._reported = owner.incarnation
            _log.info("a standby: another router owns the log", owner=owner.address, boot=owner.boot_id)


def _owner(row: asyncpg.Record | None) -> Owner | None:
    return None if row is None or row["incarnation"] is None else Owner(*row)


async def abandon(connection: Connection, boot_id: str) -> None:
    """End every ownership of one process. Raises what asyncpg raises."""
    await connection.execute(_ABANDON, boot_id)
