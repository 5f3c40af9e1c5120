"""The tables of a log, as every engine has them: what a copy reads and writes, in this order."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, NamedTuple

#: Columns with bytes; one name has one meaning in all tables.
BLOBS = frozenset({"body", "deltas", "digest", "key", "settings", "wrapped"})

#: A row: integers, texts, bytes, and a tuple of integers for scopes. A reason is bytes if it is encrypted.
Row = tuple[Any, ...]


class RowScope(Enum):
    """The relation between rows of a table and a tenant."""

    #: A column names the tenant.
    TENANT = auto()
    #: Rows belong to the tenant of their log.
    LOG = auto()
    #: Rows belong to the tenant of the log that has, or had, their epoch.
    EPOCH = auto()
    #: Rows belong to nobody: only copies of whole logs include them.
    NONE = auto()


class CopiedTable(NamedTuple):
    """One table of a log."""

    name: str
    columns: tuple[str, ...]
    #: Columns that identify a row, and by which rows are ordered.
    key: tuple[str, ...]
    scope: RowScope

    def column(self, name: str) -> int:
        """Return the index of a column."""
        return self.columns.index(name)


def _table(name: str, columns: str, key: str, scope: RowScope) -> CopiedTable:
    return CopiedTable(name, tuple(columns.split()), tuple(key.split()), scope)


#: First, since what follows may have to be encrypted again.
TENANT_KEYS = _table(
    "tenant_keys",
    "tenant generation data_key wrapped reserved created_ms",
    "tenant generation",
    RowScope.TENANT,
)
TENANTS = _table("tenants", "tenant state settings created_ms updated_ms", "tenant", RowScope.TENANT)
TOPICS = _table(
    "topics", "topic_id tenant agent platform kind target epoch pruned forked", "topic_id", RowScope.TENANT
)
MESSAGES = _table(
    "messages", "topic_id seq created_ms role author_user body crc", "topic_id seq", RowScope.LOG
)
EVENTS = _table(
    "events", "topic_id seq created_ms change message_seq user_name body crc", "topic_id seq", RowScope.LOG
)
#: `ordinal` counts the rows of each message in the order of delta_ids; no table has that column.
OPEN_DELTAS = _table("open_deltas", "topic_id seq ordinal deltas", "topic_id seq ordinal", RowScope.LOG)
IDEMPOTENCY = _table("idempotency", "key digest epoch seq connections created_ms", "key", RowScope.EPOCH)
DEAD_LETTERS = _table(
    "dead_letters",
    "delivery_id tenant agent topic_id seq attempts reason given_up_ms",
    "delivery_id",
    RowScope.TENANT,
)
DELIVERIES = _table(
    "deliveries", "delivery_id tenant agent topic_id seq attempts expires_ms", "delivery_id", RowScope.TENANT
)
AUDIT = _table("audit", "id at_ms tenant actor source action target before after", "id", RowScope.TENANT)

TABLES = (
    TENANT_KEYS,
    TENANTS,
    _table("api_keys", "key_id tenant name digest scopes created_ms used_ms", "key_id", RowScope.TENANT),
    _table(
        "revocations", "tenant kind name issued_before_ms revoked_ms", "tenant kind name", RowScope.TENANT
    ),
    _table("erased", "topic_id", "topic_id", RowScope.NONE),
    TOPICS,
    _table("former_epochs", "topic_id first_seq last_seq epoch", "topic_id first_seq", RowScope.LOG),
    MESSAGES,
    EVENTS,
    _table("open_messages", "topic_id seq producer producer_epoch", "topic_id seq", RowScope.LOG),
    OPEN_DELTAS,
    _table("receipts", "topic_id user_name delivered read updated_ms", "topic_id user_name", RowScope.LOG),
    _table("cancelled_messages", "topic_id seq cancelled_ms", "topic_id seq", RowScope.LOG),
    IDEMPOTENCY,
    # Dead letters first: their ids are lower.
    DEAD_LETTERS,
    DELIVERIES,
    AUDIT,
)


def tables_of(tenant: str | None) -> list[CopiedTable]:
    """Return the tables that may hold rows of a tenant; all of them for None."""
    return [table for table in TABLES if tenant is None or table.scope is not RowScope.NONE]
