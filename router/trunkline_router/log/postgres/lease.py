"""The lease of the router that owns the log, by the database's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.connector import Connection, Connector
from trunkline_router.log.postgres.fence import FENCE, FencedWriter
from trunkline_router.log.postgres.server_errors import DATABASE_ERRORS

_log = structlog.get_logger()

#: Parts of the lease: the interval of renewals, and the time after a renewal for which the owner is sure that
#: it still is the owner.
RENEWALS, SURENESS = 10, 4
#: Pause before a renewal that failed is tried again.
_RETRY_S = 0.1
#: Time that a release may take; without it, others wait for the end of the lease.
_RELEASE_S = 2.0

#: Waits for a takeover under way, and for nothing else.
_RENEW = f"""
    WITH fence AS MATERIALIZED ({FENCE})
    UPDATE leases SET until = clock_timestamp() + make_interval(secs => $2) FROM fence
    WHERE incarnation = $1
    RETURNING 1
"""
_RELEASE = """
    WITH router AS (UPDATE routers SET alive = false WHERE incarnation = $1)
    UPDATE slots SET incarnation = NULL WHERE incarnation = $1
"""
#: Counts the time that the machine was suspended, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """Return the time of the clock by which this machine measures its lease."""
    return time.clock_gettime(_CLOCK)


def sureness_s(lease_s: float) -> float:
    """Return the time after a renewal for which the owner is sure that it still is the owner."""
    return lease_s / SURENESS


class PostgresLease:
    """Implements Lease for one incarnation.

    Renewed several times as often as it need be. The owner is sure that it owns the log only for a part of
    the lease after it *sent* its last confirmed renewal. Another router may therefore take the log before the
    lease ends, if it sees that the owner has no session and renews nothing for longer than that.
    """

    def __init__(
        self,
        connection: Connection,
        connector: Connector,
        writer: FencedWriter,
        lease_s: float,
        acquired_at: float,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        """Take over a connection, which is that of the renewals, and an incarnation whose lease is in force.

        `acquired_at` is the time before it was acquired, by the same clock.
        """
        self._connection: Connection | None = connection
        self._connector = connector
        self._writer = writer
        self._incarnation = writer.incarnation
        self._lease_s = lease_s
        self._clock = clock
        #: Sure until then; 0 once another router owns the log.
        self._sure_until = acquired_at + sureness_s(lease_s)
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        writer.on_fenced = lambda: self._lose("a write found another owner")
        self._renewing = asyncio.create_task(self._renew())
        self._renewing.add_done_callback(self._renewing_ended)

    def is_valid(self) -> bool:
        """See Lease."""
        return self._clock() < self._sure_until

    async def lost(self) -> str:
        """See Lease."""
        return await asyncio.shield(self._lost)

    async def release(self) -> None:
        """See Lease."""
        self._renewing.cancel()
        await asyncio.gather(self._renewing, return_exceptions=True)
        if not self._lost.done():
            with suppress(LogUnavailable, *DATABASE_ERRORS):
                async with asyncio.timeout(_RELEASE_S):
                    connection = await self._connected()
                    await connection.execute(_RELEASE, self._incarnation)
        self._sure_until = 0.0
        self._disconnect()

    async def _renew(self) -> None:
        """Renew until another router owns the log."""
        while not self._lost.done():
            sent_at = self._clock()
            try:
                async with asyncio.timeout(sureness_s(self._lease_s)):
                    connection = await self._connected()
                    renewed = await connection.fetch(_RENEW, self._incarnation, self._lease_s)
            except (LogUnavailable, *DATABASE_ERRORS):
                # The connection's state is unknown. The writer logs its own reconnection.
                self._disconnect()
                await asyncio.sleep(_RETRY_S)
                continue
            if not renewed:
                self._lose("the lease cannot be renewed")
            elif not self._lost.done():
                self._sure_until = sent_at + sureness_s(self._lease_s)
                await asyncio.sleep(self._lease_s / RENEWALS)

    def _renewing_ended(self, renewing: asyncio.Task[None]) -> None:
        """Raise a bug out of `lost`: without renewals, the router would be unsure for ever."""
        if not renewing.cancelled() and (error := renewing.exception()) and not self._lost.done():
            self._sure_until = 0.0
            self._lost.set_exception(error)

    def _lose(self, noticed: str) -> None:
        self._sure_until = 0.0
        if not self._lost.done():
            self._lost.set_result(noticed)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            connection = self._connection = await self._connector.connect()
            # Before the lease is in force again: nobody may read from a server that lacks commits.
            await self._writer.check_loss(connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
