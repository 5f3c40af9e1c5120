"""Process that owns a log in PostgreSQL whenever it can, and appends to it without a pause.

Prints a JSON line for each step: `owner` as an ownership begins, `acked` with epoch, topic, seq and text of
each entry, `refused` with texts that surely are not in the log, and `fenced`. It ignores its lease, unlike a
router: only the fence stops it.

LOG_DSN names the database, LOG_LEASE_S the lease, LOG_NAME this process. With LOG_UNFENCED, its statements
do not check that it owns the log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys

import structlog
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, ROLE_USER, Author, Message, Part, TextPart
from trunkline_router.core.values.log_records import PendingEntry, Transaction
from trunkline_router.core.values.topics import GROUP, TopicKey, address_of
from trunkline_router.log.interface import Log, LogFenced, LogUnavailable
from trunkline_router.log.postgres import fence
from trunkline_router.log.postgres.database import PostgresDatabase

NAME = os.environ["LOG_NAME"]
#: Few topics: writers that overlap would meet in them at once.
TOPICS: list[TopicKey] = [("demo", "echo", "web", GROUP, f"group-{number}") for number in range(4)]
MAX_ENTRIES = 20


def entry(topic: TopicKey, text: str) -> PendingEntry:
    """A message with this text, with an idempotency key made from it."""
    message = Message(
        address=address_of(topic),
        author=Author(role=ROLE_USER, user="ann"),
        parts=[Part(text=TextPart(text=text))],
        state=MESSAGE_STATE_COMPLETE,
    )
    return PendingEntry(topic, message, key=text.encode().ljust(16)[-16:])


def put(kind: str, value: object) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


async def write(log: Log, term: str) -> None:
    """Append until the log belongs to another process."""
    for number in itertools.count():
        chosen = random.choices(TOPICS, k=random.randint(1, MAX_ENTRIES))
        entries = [entry(topic, f"{term}.{number}.{index}") for index, topic in enumerate(chosen)]
        texts = [one.message.parts[0].text.text for one in entries]
        try:
            await log.append(Transaction(entries))
        except LogFenced:
            put("refused", texts)
            put("fenced", term)
            return
        except LogUnavailable:
            put("refused", texts)
            continue
        places = [(one.topic[-1], one.position.epoch, one.position.seq) for one in entries]
        put("acked", [(*place, text) for place, text in zip(places, texts, strict=True)])


async def main() -> None:
    """Own the log again and again, each time as another incarnation."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if os.environ.get("LOG_UNFENCED"):
        fence.FENCE = "SELECT 1 WHERE $1::bigint > 0"
    for number in itertools.count():
        database = PostgresDatabase(os.environ["LOG_DSN"], lease_s=float(os.environ["LOG_LEASE_S"]))
        log, lease = await database.acquire(lambda: None)
        term = f"{NAME}.{number}"
        put("owner", term)
        await write(log, term)
        await log.close()
        await lease.release()
        await database.close()


if __name__ == "__main__":
    asyncio.run(main())
