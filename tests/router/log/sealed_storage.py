"""Logs with data keys, what their storage shows, and entries whose content must not be seen in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from trunkline.v1.message_pb2 import Message
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings, VerificationKey
from trunkline_router.core.values.log_records import (
    Checkpoint,
    DeadLettered,
    PageRequest,
    PendingEntry,
    Producer,
    Transaction,
)
from trunkline_router.core.values.stored_records import Registration, StoredTenant
from trunkline_router.core.values.topics import EMPTY, TopicKey
from trunkline_router.log.data_keys import DataKeys
from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog
from trunkline_router.log.stored_entries import checksum

from tests.router.log.engines import ALICE, NOW_MS, a_key, append, deltas, edit, open_schema, pending_entry

TEXT = "what only the reader may know"
SECRET = "a-secret-that-signs-tokens"
WORKER = Producer("worker", 1)


class Storage(Protocol):
    """The storage of one log, which is opened and closed."""

    async def open(self, keys: DataKeys | None = None) -> Log:
        """Open the log."""

    async def holds(self, *texts: str) -> list[str]:
        """Return those of the texts that are in the storage."""

    async def sql(self, text: str) -> list[tuple[Any, ...]]:
        """Run a query."""

    async def first_bytes(self, table: str) -> set[int]:
        """Return the first bytes of the bodies in a table."""

    async def replace_bodies(self, body: bytes) -> None:
        """Replace the bodies of all messages, with their checksums."""

    async def digests(self) -> list[bytes]:
        """Return the digests of the contents of entries with idempotency keys."""


class Folder:
    """A folder with SQLite's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "log.db"

    async def open(self, keys: DataKeys | None = None) -> SqliteLog:
        """See Storage."""
        return SqliteLog.open(self.file, data_keys=keys, clock=lambda: NOW_MS)

    async def holds(self, *texts: str) -> list[str]:
        """See Storage."""
        content = b"".join(path.read_bytes() for path in self.path.iterdir())
        return [text for text in texts if text.encode() in content]

    async def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """See Storage."""
        with closing(sqlite3.connect(self.file)) as db, db:
            return db.execute(text, values).fetchall()

    async def first_bytes(self, table: str) -> set[int]:
        """See Storage."""
        return {body[0] for (body,) in await self.sql(f"SELECT body FROM {table}")}

    async def replace_bodies(self, body: bytes) -> None:
        """See Storage."""
        for topic_id, seq in await self.sql("SELECT topic_id, seq FROM messages"):
            values = (body, checksum(topic_id, seq, body), topic_id, seq)
            await self.sql("UPDATE messages SET body = ?, crc = ? WHERE topic_id = ? AND seq = ?", *values)

    async def digests(self) -> list[bytes]:
        """See Storage."""
        return [digest for (digest,) in await self.sql("SELECT digest FROM recent_keys")]


class Schema:
    """A schema of PostgreSQL."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def open(self, keys: DataKeys | None = None) -> Log:
        """See Storage."""
        return await open_schema(self.dsn, keys)

    async def holds(self, *texts: str) -> list[str]:
        """See Storage: in the rows of all tables."""
        tables = await self.sql("SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()")
        dump = await self.sql(" UNION ALL ".join(f"SELECT t::text FROM {name} AS t" for (name,) in tables))
        content = "\n".join(row for (row,) in dump)
        return [text for text in texts if text in content]

    async def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """See Storage."""
        connection = await asyncpg.connect(self.dsn)
        try:
            # Texts in bodies are readable then.
            await connection.execute("SET bytea_output = escape")
            return [tuple(row) for row in await connection.fetch(text, *values)]
        finally:
            await connection.close()

    async def first_bytes(self, table: str) -> set[int]:
        """See Storage."""
        return {first for (first,) in await self.sql(f"SELECT get_byte(body, 0) FROM {table}")}

    async def replace_bodies(self, body: bytes) -> None:
        """See Storage."""
        for topic_id, seq in await self.sql("SELECT topic_id, seq FROM messages"):
            values = (body, checksum(topic_id, seq, body), topic_id, seq)
            await self.sql(
                "UPDATE messages SET body = $1, crc = $2 WHERE topic_id = $3 AND seq = $4", *values
            )

    async def digests(self) -> list[bytes]:
        """See Storage."""
        return [digest for (digest,) in await self.sql("SELECT digest FROM idempotency")]


def settings(*, encrypted: bool) -> bytes:
    key = VerificationKey(kid="k", algorithm="HS256", jwk=SECRET)
    auth = ClientAuth(keys=[key])
    return TenantSettings(client_auth=auth, encrypt_messages=encrypted).SerializeToString()


def tenant(name: str = "acme", *, encrypted: bool = True) -> Registration:
    return Registration([StoredTenant(name, 1, settings(encrypted=encrypted), NOW_MS, NOW_MS)])


def signed(entry: PendingEntry) -> PendingEntry:
    """The entry with a name and an attribute as secret as its text."""
    entry.message.author.name = f"{TEXT} name"
    entry.message.attributes["mood"] = f"{TEXT} attribute"
    return entry


async def write_everything(log: Log) -> PendingEntry:
    """Write the text to every table that holds content. Returns the first message."""
    one, dead, streamed = await append(
        log,
        signed(pending_entry(text=TEXT, deliver=True, key=a_key(), digest=b"12345678")),
        signed(pending_entry(text=TEXT, deliver=True)),
        signed(pending_entry(text=TEXT, producer=WORKER)),
    )
    change = edit(one, f"{TEXT} edited")
    assert change.change is not None
    change.change.author.name = f"{TEXT} editor"
    change.change.error.message = f"{TEXT} error"
    await append(log, change)
    await log.append(
        Transaction(
            checkpoints=[Checkpoint(ALICE, streamed.position.seq, WORKER, deltas(TEXT, TEXT))],
            dead_lettered=[DeadLettered(dead.delivery_id, 3, f"{TEXT} reason")],
        )
    )
    return one


async def texts(log: Log, topic: TopicKey = ALICE) -> list[str]:
    """Read the texts of a log's messages; empty for one without."""
    (page,) = await log.read([PageRequest(topic, 100, after=EMPTY, messages_only=True)])
    return ["".join(part.text.text for part in Message.FromString(e.body).parts) for e in page.entries]


async def page_is_valid(log: Log, topic: TopicKey = ALICE) -> bool:
    """Whether the messages of a log are intact."""
    (page,) = await log.read([PageRequest(topic, 100, after=EMPTY)])
    assert page.valid or page.damaged_seq
    return page.valid
