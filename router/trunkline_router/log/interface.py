"""The port that every log engine implements, and the promise of each operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trunkline_router.core.values.log_records import (
    Backlog,
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Page,
    PageRequest,
    Registered,
    Registration,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
    Transaction,
)
from trunkline_router.core.values.topics import Position, TopicKey


class LogUnavailable(Exception):
    """The log cannot do this now (disk full, I/O error, closed). Nothing was committed."""


class Log(Protocol):
    """Logs of topics, open messages, idempotency keys, receipts and unsettled deliveries, on disk.

    All coroutines may be called from one event loop at the same time, save `append`, `reset`, `replay`,
    `erase_tenant`, `erase_user` and `prune`, which one caller awaits one after the other. Cancelling an
    `append` leaves open whether it commits. Every operation may raise LogUnavailable.
    """

    def head(self, topic: TopicKey) -> Position | None:
        """The end of a topic's log if it is at hand without I/O, else None."""

    async def append(self, transaction: Transaction) -> None:
        """Commit a transaction; it is on disk on return.

        Entries of one topic get consecutive seqs, from 1 in a new epoch; `message.id` is unique for
        ever. Completes each entry as its docstring says. Checkpoints, changes and receipts of a log
        that was erased, and what is said about deliveries that are gone, change nothing. On
        LogUnavailable no entry has a result, and nothing of the transaction is ever seen by a reader.
        """

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        """The ends of these logs, in order; `EMPTY` for a log that holds nothing."""

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        """Read pages, in order. Each page is consistent in itself and holds committed entries only.

        An open message is read as it was opened, without its deltas.
        """

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """One serialized Message of a tenant in its present form, or None. Any string may be asked for."""

    async def open_messages(self) -> list[StoredOpen]:
        """All messages that are open."""

    async def reset(self, topic: TopicKey) -> int:
        """Erase a topic's log, its receipts, unsettled deliveries and dead letters; its next message starts a
        new epoch.

        Returns how many messages were erased. Idempotency keys are kept: a retry of what was erased
        still gets its first answer.
        """

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Unsettled deliveries of an agent with an id above `after`, lowest first."""

    async def backlogs(self, tenant: str) -> list[Backlog]:
        """What of each agent of a tenant no worker has settled; agents with nothing are left out."""

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Deliveries of an agent that were given up, with an id above `after`, lowest first."""

    async def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """Make dead letters deliveries again, with new ids, in their order, and no attempts.

        Those that are not there are passed over.
        """

    async def delivered(self, whose: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """How far users were given logs, in order: seq 0 where nothing is known, `EMPTY` for an empty log."""

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """Receipts of a topic's users after one, in the order of users."""

    async def sweep(self, now_ms: int) -> None:
        """Do a bounded piece of housekeeping: forget idempotency keys older than the engine keeps them.

        Called every few seconds, between appends; returns within some ten milliseconds.
        """

    async def registered(self) -> Registered:
        """All tenants, API keys and revocations there are."""

    async def register(self, change: Registration) -> None:
        """Commit a change of these; it is on disk on return, all of it or nothing."""

    async def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase some of a tenant's logs, with their receipts, deliveries and dead letters.

        To be called again while it returns a cursor. With the last piece the tenant's own row, its API
        keys and its revocations are gone, too. Called like `append`; returns within some tens of
        milliseconds, so that writes go on between the pieces.
        """

    async def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """Erase some of what a user has in a tenant's logs; to be called again with the cursor it returns.

        Erased as a whole are the logs of the user's own topic and of `person` conversations of that name.
        Elsewhere each message of the user becomes RECALLED, in its place, and keeps its id, address,
        position, role and time alone; changes and reads by the user name nobody any longer; the user's
        receipts, and deliveries and dead letters of the user's messages, are gone. Open messages stay, and
        so do idempotency keys. Called like `append`, and as short. What is written meanwhile may be missed.
        """

    async def prune(
        self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
    ) -> ErasedPiece:
        """Erase the beginning of some of a tenant's logs, as far as it is beyond the limits.

        With the messages go their deliveries and dead letters. What is open, and all that stands behind it
        in its log, stays, and of bytes the newest entry, whatever its size. What stays has no gaps: a change
        of a message that is gone stays, and is told without it. The end of a log is never forgotten: seqs go
        on, and a page that is asked for after a position whose successor is gone begins later, with a gap.
        To be called again with the cursor it returns; called like `append`, and as short.
        """

    async def close(self) -> None:
        """Finish what is running and release the files. Later calls raise LogUnavailable."""
