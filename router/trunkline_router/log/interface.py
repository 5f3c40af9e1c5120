"""The interface that every log engine implements, and what each operation guarantees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trunkline_router.core.values.log_records import (
    Cursor,
    ErasedPiece,
    HistoryLimits,
    Page,
    PageRequest,
    Transaction,
)
from trunkline_router.core.values.stored_records import (
    AuditQuery,
    AuditRecord,
    Backlog,
    ExpiredPage,
    Registered,
    Registration,
    StoredDeadLetter,
    StoredDelivery,
    StoredOpen,
    StoredReceipt,
)
from trunkline_router.core.values.topics import Position, TopicKey
from trunkline_router.log.data_keys import DataKeys


class LogUnavailable(Exception):
    """The log cannot perform an operation now (disk full, I/O error, closed). Nothing was committed."""


class LogFenced(LogUnavailable):
    """Another router owns the log. Nothing was committed, and this log commits nothing any more."""


class LogDamaged(LogUnavailable):
    """A stored entry, or the file, is not as it was written. Only a backup may have what it held."""


class BackupFailed(Exception):
    """A backup, check or restore of a log failed; the text says why, in one line. Nothing was changed."""


class Log(Protocol):
    """Durable storage of topics' logs, open messages, idempotency keys, receipts, deliveries and tenants.

    Coroutines may be called concurrently from one event loop. Exceptions are `append`, `reset`, `replay`,
    `erase_tenant`, `erase_user` and `prune`: the caller awaits each before it calls the next. A cancelled
    `append` may or may not commit. Every operation may raise LogUnavailable.

    An engine that cannot know whether a write was committed, because a connection broke, finds out before it
    answers.
    """

    @property
    def can_encrypt(self) -> bool:
        """Whether there is a data key, so that messages of tenants can be encrypted."""

    async def use_data_keys(self, data_keys: DataKeys) -> int:
        """Wrap the tenants' keys by the first of these data keys, if they are not. Returns their number.

        Only for a log that was opened with data keys.
        """

    def head(self, topic: TopicKey) -> Position | None:
        """Return the end of a topic's log if it is known without I/O, else None."""

    async def append(self, transaction: Transaction) -> None:
        """Commit a transaction; it is on disk on return.

        Entries of one topic get consecutive seqs, from 1 in a new epoch; `message.id` is unique forever.
        Forks come first: seqs continue in the new epoch, positions of the former one are no longer valid,
        and messages keep their ids.

        Each entry is completed as its docstring says. Checkpoints, changes and receipts of an erased log
        have no effect, nor have changes of deliveries that no longer exist. On LogUnavailable no entry has
        a result, and no reader ever sees any part of the transaction.
        """

    async def heads(self, topics: Sequence[TopicKey]) -> list[Position]:
        """Read the ends of these logs, in order; `EMPTY` for an empty log."""

    async def read(self, requests: Sequence[PageRequest]) -> list[Page]:
        """Read pages, in order. Each page is consistent and holds committed entries only.

        An open message is returned as it was opened, without its deltas.
        """

    async def message(self, tenant: str, message_id: str) -> bytes | None:
        """Read one message of a tenant in its present form, serialised; None if there is none.

        `message_id` may be any string.
        """

    async def open_messages(self) -> list[StoredOpen]:
        """Read all open messages."""

    async def reset(self, topic: TopicKey) -> int:
        """Erase a topic's log, receipts, deliveries and dead letters. Returns the number of messages.

        The topic's next message starts a new epoch. Idempotency keys stay: a repeat of an erased message
        still gets its first result.
        """

    async def deliveries(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDelivery]:
        """Read the unsettled deliveries of an agent with an id above `after`, lowest first."""

    async def backlogs(self, tenant: str) -> list[Backlog]:
        """Count the unsettled deliveries and dead letters of each agent that has any."""

    async def count_waiting(self, tenant: str, agent: str) -> int:
        """Count the unsettled deliveries of one agent, without those that have expired."""

    async def expired(self, after: int, limit: int) -> ExpiredPage:
        """Read the expired deliveries among the next `limit` of all agents with an id above `after`.

        They stay until they are settled, and `deliveries` returns them.
        """

    async def dead_letters(self, tenant: str, agent: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Read the dead letters of an agent with an id above `after`, lowest first."""

    async def replay(self, tenant: str, agent: str, delivery_ids: Sequence[int]) -> list[StoredDelivery]:
        """Turn dead letters into deliveries with new ids, in the same order, and no attempts.

        Ids that are not dead letters are ignored.
        """

    async def delivered(self, users: Sequence[tuple[TopicKey, str]]) -> list[Position]:
        """Read the positions up to which users received topics, in order.

        The seq is 0 without a receipt; `EMPTY` stands for an empty log.
        """

    async def receipts(self, topic: TopicKey, after: str, limit: int) -> list[StoredReceipt]:
        """Read the receipts of a topic's users after `after`, in the order of users."""

    async def sweep(self, now_ms: int) -> None:
        """Do a bounded piece of housekeeping.

        Deletes idempotency keys, and marks of cancelled messages, past the engine's retention.

        Called every few seconds, between appends; takes about ten milliseconds.
        """

    async def registered(self) -> Registered:
        """Read all tenants, API keys and revocations."""

    async def register(self, change: Registration) -> None:
        """Commit a change of tenants, API keys and revocations as a whole, with the records of who made it.

        It is on disk on return.
        """

    async def audit(self, query: AuditQuery) -> list[tuple[int, AuditRecord]]:
        """Read audit records with their ids, newest first."""

    async def erase_tenant(self, tenant: str) -> ErasedPiece:
        """Erase some of a tenant's logs, with their receipts, deliveries and dead letters.

        Call again while it returns a cursor. The last piece also deletes the tenant's own row, API keys and
        revocations. Called like `append`; takes some tens of milliseconds, so that writes continue between
        pieces.
        """

    async def erase_user(self, tenant: str, user: str, cursor: Cursor | None) -> ErasedPiece:
        """Erase some of what a user wrote in a tenant's logs. Call again with the cursor it returns.

        The log of the user's own topic and of `person` conversations with the user's name are erased as a
        whole. In other logs each message of the user becomes RECALLED in its place and keeps only its id,
        address, position, role and times; changes and reads no longer name the user; the user's receipts,
        and the deliveries and dead letters of the user's messages, are deleted. Open messages and
        idempotency keys stay. Called like `append`, and as short. Entries written meanwhile may be missed.
        """

    async def prune(
        self, tenant: str, limits: HistoryLimits, cursor: Cursor | None, now_ms: int
    ) -> ErasedPiece:
        """Erase the beginnings of some of a tenant's logs, as far as they exceed the limits.

        Deliveries and dead letters of erased messages are deleted. An open message stays, with everything
        after it, and of a size limit the newest entry, whatever its size. The rest has no gaps: a change of
        an erased message stays and is returned without the message. Seqs continue; a page requested after a
        position whose successor is erased begins later, with a gap. Call again with the cursor it returns;
        called like `append`, and as short.
        """

    async def close(self) -> None:
        """Finish running operations and release the files. Later calls raise LogUnavailable."""
