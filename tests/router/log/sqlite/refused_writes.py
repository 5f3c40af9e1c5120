"""Appends while the kernel forbids files to grow, then while it allows it.

Prints the number of refused appends and of committed messages.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from trunkline_router.core.values.log_records import AppendResult, Transaction
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.log.sqlite.engine import SqliteLog

from tests.router.log.engines import pending_entry


async def main() -> None:
    log = SqliteLog.open(Path(sys.argv[1]))
    refused = committed = 0
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most_bytes in (200_000, unlimited[0], 400_000, unlimited[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, unlimited[1]))
        for _ in range(30):
            one = pending_entry(text="x" * 20_000)
            try:
                await log.append(Transaction([one]))
                committed += 1
            except LogUnavailable:
                refused += 1
                assert one.result is AppendResult.PENDING
    await log.close()
    sys.stdout.write(f"{refused} {committed}\n")


asyncio.run(main())
