"""Appends to the log named on the command line until killed; prints each head once it is committed.

The key of each message is that of its seq, and keys move from one table to the other all the time.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from log_engines import ALICE, draft, hashed_key

from router.log.sqlite import SqliteLog


async def main() -> None:
    log = SqliteLog.open(Path(sys.argv[1]), recent_keys=30)
    (head,) = await log.heads([ALICE])
    seq = head.seq
    while True:
        drafts = [draft(key=hashed_key(seq + n), deliver=True) for n in range(1, 8)]
        await log.append(drafts, [])
        seq = drafts[-1].message.position.seq
        sys.stdout.write(f"{seq}\n")
        sys.stdout.flush()


asyncio.run(main())
