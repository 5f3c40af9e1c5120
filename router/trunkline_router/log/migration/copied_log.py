"""The interface by which the copier reads and writes a log of either engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from trunkline_router.log.migration.copied_tables import CopiedTable, Row

#: Rows of one piece, and bytes of their values, at most; one larger row is a piece of its own.
PIECE_ROWS, PIECE_BYTES = 2_000, 4 << 20

#: Added to the version of the schema while a copy is incomplete: no version of the router opens the log.
COPYING = 1_000_000

#: Values of a row's key.
RowKey = tuple[int | str | bytes, ...]


class CopyFailed(Exception):
    """A copy cannot begin or go on; the text says why, in one line."""


class CopyDiffers(CopyFailed):
    """The copy holds other rows than its source. It stays marked, so no router opens it."""


class Piece(NamedTuple):
    """Some rows of a table, in the order of reading."""

    rows: list[Row]
    #: Reading continues after this key.
    last: RowKey


class HighestIds(NamedTuple):
    """The highest ids ever assigned in a log."""

    topic: int
    delivery: int
    audit: int


class LogVersion(NamedTuple):
    """State of a log: equal states have equal content."""

    #: Identity of the log.
    log: str
    #: Identity of its last commit.
    commit: str


class CopiedLog(Protocol):
    """A log that no router can use meanwhile. One call at a time. Every call may raise CopyFailed."""

    def describe(self) -> str:
        """Return where the log is, for people; without passwords."""

    async def version(self) -> LogVersion:
        """Read the log's state. Raises CopyFailed if another process may have taken the log over."""

    async def highest_ids(self) -> HighestIds:
        """Read the highest ids."""

    async def count(self, table: CopiedTable, tenant: str | None) -> int:
        """Count the rows of a table, or those of one tenant."""

    def pieces(self, table: CopiedTable, tenant: str | None, after: RowKey | None) -> AsyncGenerator[Piece]:
        """Read the rows of a table, or those of one tenant, after a key, in an order that repeats itself."""

    # Of a log that is copied to

    async def load_state(self) -> str | None:
        """Load the state of the copy into this log.

        None if there is none, and if the log was written to since the copy was complete.
        """

    async def begin(self, state: str) -> None:
        """Mark the log as being copied to, so that no router of any version opens it."""

    async def write(self, table: CopiedTable, rows: Sequence[Row], state: str) -> None:
        """Commit rows, and the state of the copy, as a whole."""

    async def delete(self, tenant: str | None, audit_id: int, log_key: int) -> None:
        """Delete what a copy wrote: of one tenant, or everything.

        Audit records up to an id, and keys of digests up to a generation, stay.
        """

    async def delete_keys(self, tenant: str) -> None:
        """Delete idempotency keys with results in a tenant's logs, which an earlier copy may have left."""

    async def finish(self, ids: HighestIds, state: str, *, is_complete: bool) -> None:
        """Assign only higher ids from now on. If the copy is complete, remove the mark: the log may be used.

        The state stays, for a run that repeats one that was killed at its end.
        """

    async def forget(self) -> None:
        """Remove the mark, and the state."""

    async def aclose(self) -> None:
        """Let others use the log. Never raises."""
