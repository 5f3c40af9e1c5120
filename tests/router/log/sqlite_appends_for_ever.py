"""Appends to the log named on the command line until killed; prints each head once it is committed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from log_engines import ALICE, draft

from router.log.sqlite import SqliteLog


async def main() -> None:
    log = SqliteLog.open(Path(sys.argv[1]))
    while True:
        await log.append([draft(deliver=True) for _ in range(7)], [])
        head = log.head(ALICE)
        assert head is not None
        sys.stdout.write(f"{head.seq}\n")
        sys.stdout.flush()


asyncio.run(main())
