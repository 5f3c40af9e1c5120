"""Explains failures of the database in one line each, and tells the certain ones from the others."""

from __future__ import annotations

import socket
import ssl

import asyncpg

from trunkline_router.log.interface import LogDamaged, LogUnavailable

#: Failures of the connection or the server. TimeoutError is an OSError.
DATABASE_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
#: Explanations by SQLSTATE, before the server's own words.
_EXPLANATIONS = {
    "22021": "the text contains a character that the database cannot store",
    "25006": "the database is read-only: a replica, or default_transaction_read_only is on",
    "25P03": "the server ended a session that was idle in a transaction",
    "26000": "the server lost a prepared statement; a connection pooler must use session mode",
    "40P01": "the server ended a deadlock",
    "42501": "the role lacks a right",
    "42P01": "a table is missing",
    "42P05": "a prepared statement exists already; a connection pooler must use session mode",
    "53100": "the disk of the database server is full",
    "53200": "the database server is out of memory",
    "53300": "the database server has no free connection: see its max_connections",
    "53400": "a limit of the database server is reached",
    "55P03": "a lock was not available in time",
    "57014": "the server cancelled the statement: statement_timeout, or a person",
    "57P01": "the database server shuts down, or a person ended the session",
    "57P02": "the database server crashed and recovers",
    "57P03": "the database server does not accept connections yet",
    "57P05": "the server ended an idle session",
    "58030": "the database server cannot read or write its files",
    "XX001": "the database server found damaged data",
    "XX002": "the database server found a damaged index",
    "28000": "the server does not let this role in: see its pg_hba.conf",
    "28P01": "the password or the user is wrong",
    "3D000": "the database does not exist",
    "3F000": "the schema does not exist",
}
#: Refusals of a connection that stay until a person acts.
_PERMANENT = {"0A000", "22023", "28000", "28P01", "3D000", "42501", "42704"}


def explain(error: BaseException) -> str:
    """Explain a failure in one line."""
    if isinstance(error, asyncpg.PostgresError):
        return _explain_server(error)
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "the server is a replica, which is read-only"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"the host is unknown: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if _lacks_tls(error):
        return "the server has no TLS (SSL), which the sslmode of the URL demands"
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)) and not str(error):
        return "the connection broke"
    return _one_line(str(error)) or type(error).__name__


def refused(act: str, error: BaseException) -> LogUnavailable:
    """Turn the failure of a statement into the one that callers know; `act` is read or write."""
    is_damage = isinstance(error, (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError))
    return (LogDamaged if is_damage else LogUnavailable)(f"cannot {act} the log: {explain(error)}")


def is_refusal(error: BaseException) -> bool:
    """Whether the server refused a statement and rolled it back, and the connection is still usable.

    After other failures of a statement, a commit may have happened.
    """
    if not isinstance(error, asyncpg.PostgresError) or isinstance(error, asyncpg.PostgresConnectionError):
        return False
    # Without a severity, the client found the value that does not fit, and sent nothing.
    return error.severity_en == "ERROR" or (
        error.severity_en is None and isinstance(error, asyncpg.DataError)
    )


def is_permanent(error: BaseException) -> bool:
    """Whether an attempt to connect failed for a reason that time does not heal."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in _PERMANENT
    return _lacks_tls(error) or isinstance(
        error, (asyncpg.TargetServerAttributeNotMatched, asyncpg.InterfaceError, ssl.SSLCertVerificationError)
    )


def _lacks_tls(error: BaseException) -> bool:
    # asyncpg raises no class of its own.
    return type(error) is ConnectionError and "rejected SSL" in str(error)


def _explain_server(error: asyncpg.PostgresError) -> str:
    if isinstance(error, asyncpg.PostgresConnectionError) and isinstance(
        error.__cause__, asyncpg.PostgresError
    ):
        # The server sent the reason before it closed the connection.
        return _explain_server(error.__cause__)
    message = _one_line(error.args[0] if error.args else "")
    code = error.sqlstate
    if isinstance(error, asyncpg.PostgresConnectionError):
        return f"the connection broke ({message})" if message else "the connection broke"
    explanation = _EXPLANATIONS.get(code)
    # The message of a value's error may contain the value.
    if explanation is None and code is not None and code.startswith("22"):
        return f"a value is not valid for its column (SQLSTATE {code})"
    if error.severity_en is None and isinstance(error, asyncpg.DataError):
        return "a value is not valid for its column"
    if code == "22021" or not message:
        return f"{explanation or type(error).__name__} (SQLSTATE {code})"
    return f"{explanation}: {message} (SQLSTATE {code})" if explanation else f"{message} (SQLSTATE {code})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
