"""Appends to the log named on the command line until killed, and prints each commit.

A line holds the head, the seq of the open message, and the number of its deltas. Each iteration opens one
message, ends the one before and checkpoints its own three times. Every other message has the key of its seq,
and keys move between their tables all the time.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from trunkline.v1.message_pb2 import Message
from trunkline_router.core.values.log_records import Checkpoint, PendingEntry, Producer, Transaction
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import ALICE, deltas, end, hashed_key, pending_entry


async def main() -> None:
    log = SqliteLog.open(Path(sys.argv[1]), recent_keys=30)
    (head,) = await log.heads([ALICE])
    opened = [PendingEntry(ALICE, Message.FromString(one.message)) for one in await log.open_messages()]
    seq = head.seq
    while True:
        one = pending_entry(producer=Producer("worker", 1))
        entries = [pending_entry(key=hashed_key(seq + n), deliver=True) for n in range(1, 6)]
        entries += [one, *(end(before) for before in opened)]
        await log.append(Transaction(entries))
        opened = [one]
        seq += len(entries)
        place = one.message.position.seq
        tell(seq, place, 0)
        for n in range(1, 4):
            checkpoint = Checkpoint(ALICE, place, Producer("worker", n + 1), deltas(str(n)))
            await log.append(Transaction(checkpoints=[checkpoint]))
            tell(seq, place, n)


def tell(*numbers: int) -> None:
    sys.stdout.write(" ".join(map(str, numbers)) + "\n")
    sys.stdout.flush()


asyncio.run(main())
