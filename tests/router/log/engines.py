"""The engines under test, and entries to append.

One line in `ENGINES` adds an engine to the conformance suite and the model.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.frame_pb2 import ReadFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    Author,
    Change,
    ChangeKind,
    Delta,
    Message,
    Part,
    TextPart,
)
from trunkline_router.core.values.log_records import PendingEntry, Producer, Transaction
from trunkline_router.core.values.topics import PERSON, Position, TopicKey, address_of
from trunkline_router.log.data_keys import DataKeys, parse_data_keys
from trunkline_router.log.encryption import OVERHEAD
from trunkline_router.log.interface import Log
from trunkline_router.log.sqlite.engine import SqliteLog

NOW_MS = 1_700_000_000_123
HOUR_MS = 3_600_000
ALICE: TopicKey = ("acme", "echo", "web", PERSON, "alice")
BOB: TopicKey = ("acme", "echo", "web", PERSON, "bob")
OTHER_TENANT: TopicKey = ("evil", "echo", "web", PERSON, "alice")

#: Opens or reopens the log of one test.
Opener = Callable[[], Coroutine[Any, Any, Log]]


DATA_KEYS = parse_data_keys([base64.b64encode(bytes(range(32))).decode()], "TRUNKLINE_DATA_KEY")


class EveryTenant(set[str]):
    """Contains all tenants."""

    def __contains__(self, tenant: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True

    def intersection(self, *others: Iterable[Any]) -> set[str]:
        return {tenant for other in others for tenant in other}


class Clock:
    """The clock of the engines; tests set it."""

    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


clock = Clock()


def open_sqlite(folder: Path) -> Opener:
    async def opener() -> Log:
        return SqliteLog.open(folder / "log.db", clock=clock, keep_keys_ms=HOUR_MS)

    return opener


def open_sqlite_with_few_recent_keys(folder: Path) -> Opener:
    """Idempotency keys move between their tables all the time."""

    async def opener() -> Log:
        return SqliteLog.open(folder / "log.db", clock=clock, keep_keys_ms=HOUR_MS, recent_keys=2)

    return opener


def open_encrypted_sqlite(folder: Path) -> Opener:
    """The messages of all tenants are encrypted, declared or not."""

    async def opener() -> Log:
        log = SqliteLog.open(folder / "log.db", data_keys=DATA_KEYS, clock=clock, keep_keys_ms=HOUR_MS)
        log._encryption.encrypted_tenants = EveryTenant()
        return log

    return opener


async def open_schema(dsn: str, data_keys: DataKeys | None = None) -> Log:
    """Open a log in PostgreSQL. Closing it releases its lease: the next open need not wait."""
    # Scripts that use SQLite import this module without what servers need.
    from trunkline_router.log.postgres.database import PostgresDatabase

    database = PostgresDatabase(dsn, data_keys=lambda: data_keys, clock=clock, keep_keys_ms=HOUR_MS)
    log, lease = await database.acquire(lambda: None)
    close_log = log.close

    async def close() -> None:
        await close_log()
        await lease.release()
        await database.close()

    log.close = close  # type: ignore[method-assign]
    return log


def open_postgres(_: Path, version: int = 18, data_keys: DataKeys | None = None) -> Opener:
    """The log is in a schema of its own."""
    schema: list[str] = []

    async def opener() -> Log:
        from tests.support.postgres import shared_server

        if not schema:
            schema.append(shared_server(version).fresh_schema())
        return await open_schema(schema[0], data_keys)

    return opener


def open_encrypted_postgres(folder: Path) -> Opener:
    """The messages of all tenants are encrypted, declared or not."""
    open_plain = open_postgres(folder, data_keys=DATA_KEYS)

    async def opener() -> Log:
        log: Any = await open_plain()
        log._encryption.encrypted_tenants = EveryTenant()
        return log

    return opener


ENGINES: dict[str, Callable[[Path], Opener]] = {
    "sqlite": open_sqlite,
    "sqlite-few-recent-keys": open_sqlite_with_few_recent_keys,
    "sqlite-encrypted": open_encrypted_sqlite,
    "postgres": open_postgres,
    "postgres-16": partial(open_postgres, version=16),
    "postgres-encrypted": open_encrypted_postgres,
}


_keys = itertools.count(1)


def a_key() -> bytes:
    return next(_keys).to_bytes(16, "big")


def hashed_key(number: int) -> bytes:
    """A key for a number; keys of rising numbers are in random order."""
    return blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def pending_entry(
    topic: TopicKey = ALICE,
    text: str = "hello",
    *,
    key: bytes | None = None,
    digest: bytes = b"",
    connections: int = 0,
    deliver: bool = False,
    expire_after_ms: int = 0,
    repeat_only: bool = False,
    producer: Producer | None = None,
    user: str = "alice",
) -> PendingEntry:
    message = Message(
        address=address_of(topic),
        author=Author(role=ROLE_USER, user=user),
        parts=[Part(text=TextPart(text=text))],
        state=MESSAGE_STATE_COMPLETE if producer is None else MESSAGE_STATE_OPEN,
    )
    return PendingEntry(
        topic,
        message,
        key=key,
        digest=digest,
        connections=connections,
        deliver=deliver,
        expire_after_ms=expire_after_ms,
        repeat_only=repeat_only,
        producer=producer,
    )


def change(
    target: PendingEntry, kind: ChangeKind.ValueType, text: str = "", *, key: bytes | None = None
) -> PendingEntry:
    """A change of a committed message, whose text becomes `text`."""
    message = Message()
    message.CopyFrom(target.message)
    message.state = MESSAGE_STATE_RECALLED if kind == CHANGE_KIND_RECALLED else MESSAGE_STATE_COMPLETE
    message.ClearField("parts")
    if text:
        message.parts.add().text.text = text
    entry = Change(
        address=message.address,
        message_id=message.id,
        kind=kind,
        state=message.state,
        author=Author(role=ROLE_USER, user="carol"),
    )
    return PendingEntry(target.topic, message, key=key, change=entry)


def end(target: PendingEntry, text: str = "whole") -> PendingEntry:
    return change(target, CHANGE_KIND_ENDED, text)


def edit(target: PendingEntry, text: str = "edited", *, key: bytes | None = None) -> PendingEntry:
    return change(target, CHANGE_KIND_EDITED, text, key=key)


def recall(target: PendingEntry) -> PendingEntry:
    return change(target, CHANGE_KIND_RECALLED)


def read(topic: TopicKey, position: Position, user: str = "alice") -> PendingEntry:
    frame = ReadFrame(position=position.to_proto(), user=user, address=address_of(topic))
    return PendingEntry(topic, Message(), read=frame)


def stored_size(log: Any, *bodies: bytes) -> int:
    """The bytes that a log stores for these bodies of entries."""
    return sum(map(len, bodies)) + (OVERHEAD * len(bodies) if log.can_encrypt else 0)


def position(one: PendingEntry) -> Position:
    """The position of a committed entry."""
    return Position(one.position.epoch, one.position.seq)


def deltas(*texts: str) -> bytes:
    return ReplyDeltas(deltas=[Delta(index=n, text=text) for n, text in enumerate(texts)]).SerializeToString()


def with_message(change: bytes, message: bytes) -> bytes:
    """A serialized Change with a serialized Message in it."""
    whole = Change.FromString(change)
    whole.message.ParseFromString(message)
    return whole.SerializeToString()


async def append(log: Log, *entries: PendingEntry, settled: tuple[int, ...] = ()) -> list[PendingEntry]:
    await log.append(Transaction(list(entries), list(settled)))
    return list(entries)
