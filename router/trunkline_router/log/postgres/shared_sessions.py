"""Detects connection poolers that let sessions share the server's."""

from __future__ import annotations

from trunkline_runtime.process import StartError

from trunkline_router.log.postgres.connector import (
    ConnectFailed,
    Connection,
    Connector,
    close_connection,
)

_PID = "SELECT pg_backend_pid()"


async def refuse_shared_sessions(connection: Connection, connector: Connector) -> None:
    """Raise StartError if a pooler in transaction or statement mode serves the connection.

    Settings of such a session, as that a commit is on disk before it is confirmed, may be in force for other
    statements than its own. Two idle connections prove it, if one process of the server serves both; a pooler
    that many others use may remain undetected. Raises ConnectFailed.
    """
    try:
        other = await connector.connect()
    except ConnectFailed as error:
        if "pooler" in str(error):
            raise StartError(str(error)) from None
        raise
    try:
        pids = {await each.fetchval(_PID) for each in (connection, other)}
    finally:
        await close_connection(other)
    if len(pids) == 1:
        raise StartError(
            "a connection pooler lets sessions share the server's: set it to session mode, or name the server"
            " itself"
        )
