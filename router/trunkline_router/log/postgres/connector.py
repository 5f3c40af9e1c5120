"""Opens connections to the database."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg
import structlog

from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.postgres.dsn import Dsn, Host
from trunkline_router.log.postgres.server_errors import (
    DATABASE_ERRORS,
    explain,
    is_permanent,
)

_log = structlog.get_logger()

Connection: TypeAlias = "asyncpg.Connection[Any]"

#: Bound of one attempt to connect to one server.
CONNECT_TIMEOUT_S = 4.0
#: An attempt that takes longer does not hold up the one to the next server: after a failover, the former
#: primary's machine may not answer at all.
HOST_STAGGER_S = 0.25
#: Pauses between attempts, longer each time, and shorter by up to a half at random: routers must not come all
#: at once.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0
#: Settings of our sessions, unless the DSN sets them. The server notices a dead router soon, never ends a
#: statement because it took long, and neither compiles nor plans one again: they are short, and look up keys.
_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "30000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    # A plan that is made while a table is empty must not scan it when it is full.
    "enable_seqscan": "off",
}
#: Further settings of the session that writes. A bitmap scan would read all rows before a LIMIT counts.
WRITER_SETTINGS = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_bitmapscan": "off"}
#: A commit is on disk before it is confirmed; a stricter setting stays.
_SET_UP = """
    SELECT pg_backend_pid(), (
        SELECT count(set_config(name, wanted, false))
        FROM pg_settings JOIN unnest($1::text[], $2::text[]) AS ours (name, wanted) USING (name)
        WHERE setting <> wanted AND source <> 'client'
    ), (
        SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
    )
"""


#: Of our side of a connection, where the system has them: a probe each second after two of silence, and five
#: seconds (in ms) without an acknowledgement.
_TCP_OPTIONS = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5_000}


#: Process ids of connections' sessions.
_pids: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
_CONNECT_ERRORS = (*DATABASE_ERRORS, ValueError)


class ConnectFailed(LogUnavailable):
    """No server of the DSN let this router in; the text names each and its reason.

    `is_permanent` is set if none of the reasons heals with time.
    """

    def __init__(self, text: str, *, is_permanent: bool) -> None:
        super().__init__(text)
        self.is_permanent = is_permanent


class Connector:
    """Opens connections to the primary server of a DSN. Sessions are called `application_name`."""

    def __init__(
        self,
        dsn: Dsn,
        application_name: str = "trunkline",
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.dsn = dsn
        self.application_name = application_name
        self._settings = {**_SETTINGS, **settings}

    async def connect(self) -> Connection:
        """Open a connection to the server that is not a replica. Raises ConnectFailed."""
        hosts: list[Host | None] = list(self.dsn.hosts) or [None]
        attempts: list[asyncio.Task[Connection]] = []
        running: set[asyncio.Task[Connection]] = set()
        try:
            while running or len(attempts) < len(hosts):
                if len(attempts) < len(hosts):
                    attempts.append(asyncio.create_task(self._connect(hosts[len(attempts)])))
                    running.add(attempts[-1])
                is_last = len(attempts) == len(hosts)
                done, running = await asyncio.wait(
                    running,
                    timeout=None if is_last else HOST_STAGGER_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in done:
                    if not isinstance(attempt.exception(), _CONNECT_ERRORS):
                        connection = attempt.result()
                        attempts.remove(attempt)
                        return connection
            failures = [failure for attempt in attempts if (failure := attempt.exception())]
        finally:
            for attempt in attempts:
                attempt.cancel()
                attempt.add_done_callback(_discard)
        reasons = zip(hosts, map(explain, failures), strict=True)
        problem = "; ".join(f"{host or 'PostgreSQL'}: {reason}" for host, reason in reasons)
        raise ConnectFailed(problem, is_permanent=all(map(is_permanent, failures)))

    async def reconnect(self) -> Connection:
        """Open a connection, and try again until that works. Logs each new reason once."""
        problem, pause_s = "", FIRST_PAUSE_S
        while True:
            try:
                connection = await self.connect()
            except ConnectFailed as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.warning("cannot connect to PostgreSQL, trying again", problem=problem)
            else:
                if problem:
                    _log.info("connected to PostgreSQL again", database=self.dsn.describe())
                return connection
            pause_s = await back_off(pause_s)

    async def _connect(self, host: Host | None) -> Connection:
        address = {} if host is None else {"host": host.name, "port": host.port}
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection: Connection = await asyncpg.connect(
                self.dsn.text,
                **address,
                target_session_attrs="primary",
                server_settings={"application_name": self.application_name},
                statement_cache_size=512,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
            )
            _notice_vanished_host(connection)
            try:
                settings = list(self._settings), list(self._settings.values())
                _pids[connection] = await connection.fetchval(_SET_UP, *settings)
            except BaseException:
                connection.terminate()
                raise
        return connection


def server_pid(connection: Connection) -> int:
    """Return the process id of an open connection's session; asyncpg may know that of a pooler."""
    return _pids[connection]


def _discard(attempt: asyncio.Task[Connection]) -> None:
    """End the connection of an attempt that another one has preceded."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def _notice_vanished_host(connection: Connection) -> None:
    """End the connection some seconds after the server's machine is gone without closing it."""
    # asyncpg neither sets these nor shows the socket.
    peer = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if peer is None or peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _TCP_OPTIONS.items():
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def back_off(pause_s: float) -> float:
    """Pause between two attempts. Returns the length of the next pause."""
    await asyncio.sleep(pause_s * random.uniform(0.5, 1))
    return min(pause_s * 2, LAST_PAUSE_S)


async def close_connection(connection: Connection) -> None:
    """Close a connection that runs no statement. Never raises."""
    try:
        await connection.close(timeout=1)
    except DATABASE_ERRORS:
        connection.terminate()
