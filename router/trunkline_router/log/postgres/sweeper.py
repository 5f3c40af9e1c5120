"""Deletes expired rows, and those of erased logs, a bounded number at a time."""

from __future__ import annotations

from trunkline_router.log.postgres.fence import FencedWriter


async def sweep(writer: FencedWriter, created_before_ms: int) -> None:
    """Delete some idempotency keys and marks of cancelled messages created before a time.

    Deletes some rows of erased logs and some numbers of former commits, too.
    """
    raise NotImplementedError
