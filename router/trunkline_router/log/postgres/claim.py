"""Owns the log of a database for a command, which waits for no router."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.connector import WRITER_SETTINGS, Connection, Connector
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_router.log.postgres.fence import FencedWriter
from trunkline_router.log.postgres.lease import PostgresLease, sureness_s
from trunkline_router.log.postgres.schema import HAS_LOG, IS_COPYING, NO_LOG, prepare_schema
from trunkline_router.log.postgres.shared_sessions import refuse_shared_sessions
from trunkline_router.log.postgres.takeover import POLL_S, SLACK_S, Owner, Ownership, Standby

#: As that of routers without TRUNKLINE_OWNERSHIP_LEASE_S.
_LEASE_S = 5.0


class Claim(NamedTuple):
    """An incarnation that owns a log, until the block of `claim` ends."""

    incarnation: int
    #: Name for its sessions.
    session_name: str
    writer: FencedWriter


@asynccontextmanager
async def claim(dsn: Dsn, *, may_be_copying: bool = False, may_install: bool = False) -> AsyncIterator[Claim]:
    """Own a log; install its tables if there are none, and they may be.

    Raises LogUnavailable if there is no log, or a router owns it, and StartError for what time does not heal:
    also for a log that another is being copied into, unless it may be.
    """
    lease_s = _lease_s()
    async with AsyncExitStack() as stack:
        first = Connector(dsn)
        connection = await first.connect()
        stack.callback(connection.terminate)
        await refuse_shared_sessions(connection, first)
        if not may_install and not await connection.fetchval(HAS_LOG):
            raise LogUnavailable(NO_LOG)
        if not (may_be_copying and await _is_copying(connection)):
            await prepare_schema(connection)
        ownership = await _own(connection, lease_s)
        name = ownership.session_name
        connector, renewals = Connector(dsn, name, WRITER_SETTINGS), Connector(dsn, name)
        writer = FencedWriter(await connector.connect(), connector, ownership.incarnation)
        stack.push_async_callback(writer.close)
        lease = PostgresLease(await renewals.connect(), renewals, writer, lease_s, ownership.acquired_at)
        stack.push_async_callback(lease.release)
        yield Claim(ownership.incarnation, name, writer)


async def _is_copying(connection: Connection) -> bool:
    if not await connection.fetchval(HAS_LOG):
        return False
    return bool(await connection.fetchval(IS_COPYING))


async def _own(connection: Connection, lease_s: float) -> Ownership:
    """Own the log, unless its owner renews its lease; waits until one that was killed is known to be gone."""
    standby = Standby(secrets.token_hex(8), f"{socket.gethostname()} (a command)", lease_s)
    former: Owner | None = None
    for _ in range(int((sureness_s(lease_s) + 2 * SLACK_S) / POLL_S) + 4):
        if (ownership := await standby.try_to_own(connection)) is not None:
            return ownership
        owner = standby.owner
        if former is not None and (owner is None or owner.until != former.until):
            break
        former = owner
        await asyncio.sleep(POLL_S)
    address = former.address if former else "unknown"
    raise LogUnavailable(f"the log is in use by another router ({address}): stop all routers first")


def _lease_s() -> float:
    try:
        return float(os.environ.get("TRUNKLINE_OWNERSHIP_LEASE_S", _LEASE_S))
    except ValueError:
        return _LEASE_S
