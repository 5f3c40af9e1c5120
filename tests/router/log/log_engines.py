"""The engines that tests of the log run against, and drafts to write.

A new engine joins the conformance suite and the model by one entry in `ENGINES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from pathlib import Path
from typing import Any

from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, ROLE_USER, Author, Message, Part, TextPart

from router.core.journal import Draft
from router.core.topics import PERSON, TopicKey, address_of
from router.log.port import Log
from router.log.sqlite import SqliteLog

NOW_MS = 1_700_000_000_123
HOUR_MS = 3_600_000
ALICE: TopicKey = ("acme", "echo", "web", PERSON, "alice")
BOB: TopicKey = ("acme", "echo", "web", PERSON, "bob")
OTHER_TENANT: TopicKey = ("evil", "echo", "web", PERSON, "alice")

#: Opens, or reopens, the log of one test.
Opener = Callable[[], Coroutine[Any, Any, Log]]


def open_sqlite(folder: Path) -> Opener:
    async def opener() -> Log:
        return SqliteLog.open(folder / "log.db", clock=lambda: NOW_MS, keep_keys_ms=HOUR_MS)

    return opener


def open_sqlite_with_few_recent_keys(folder: Path) -> Opener:
    """Keys are on their way from one table to the other all the time."""

    async def opener() -> Log:
        return SqliteLog.open(folder / "log.db", clock=lambda: NOW_MS, keep_keys_ms=HOUR_MS, recent_keys=2)

    return opener


ENGINES: dict[str, Callable[[Path], Opener]] = {
    "sqlite": open_sqlite,
    "sqlite-few-recent-keys": open_sqlite_with_few_recent_keys,
}


_keys = itertools.count(1)


def a_key() -> bytes:
    return next(_keys).to_bytes(16, "big")


def hashed_key(number: int) -> bytes:
    """Keys of rising numbers are in no order."""
    return blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def draft(
    topic: TopicKey = ALICE,
    text: str = "hello",
    *,
    key: bytes | None = None,
    digest: bytes = b"",
    connections: int = 0,
    deliver: bool = False,
    repeat_only: bool = False,
) -> Draft:
    message = Message(
        address=address_of(topic),
        author=Author(role=ROLE_USER, user="alice"),
        parts=[Part(text=TextPart(text=text))],
        state=MESSAGE_STATE_COMPLETE,
    )
    return Draft(
        topic,
        message,
        key=key,
        digest=digest,
        connections=connections,
        deliver=deliver,
        repeat_only=repeat_only,
    )


async def append(log: Log, *drafts: Draft, settled: tuple[int, ...] = ()) -> list[Draft]:
    await log.append(drafts, settled)
    return list(drafts)
