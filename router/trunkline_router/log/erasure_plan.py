"""Plans pieces of erasures, for every engine."""

from __future__ import annotations

from typing import NamedTuple

from trunkline_router.core.values.log_records import Cursor, ErasedPiece
from trunkline_router.core.values.topics import PERSON, USER
from trunkline_router.log.log_spans import LogPiece, LogSpan, take_entries, take_logs

#: Deliveries of a tenant that one piece deletes, and as many dead letters.
DELETED_WORK = 2_000
#: Entries that one piece searches for those of a user.
SEARCHED_ENTRIES = 2_000
#: Entries of the logs that one piece erases: their events must be counted.
ERASED_ENTRIES = 100_000
#: Cursor of the first piece.
START: Cursor = (0, 0)


class TenantErasure(NamedTuple):
    """One piece of a tenant's erasure, once there are no more deliveries and dead letters."""

    #: The logs to erase.
    logs: list[LogSpan]
    #: The tenant's own rows are to be deleted, too.
    is_last: bool

    def erased(self, messages: int) -> ErasedPiece:
        """Return the result of the piece."""
        topics = tuple(log.topic for log in self.logs)
        return ErasedPiece(messages, topics=topics, cursor=None if self.is_last else START)


class UserErasure(NamedTuple):
    """One piece of a user's erasure."""

    #: The user's own logs, which are erased as a whole.
    own: list[LogSpan]
    #: The entries to search for those of the user.
    spans: list[LogSpan]
    cursor: Cursor | None

    @property
    def topic_ids(self) -> list[int]:
        """Logs in which the user's receipts are deleted."""
        return [log.topic_id for log in (*self.own, *self.spans)]

    def erased(self, messages: int, receipts: int) -> ErasedPiece:
        """Return the result of the piece."""
        return ErasedPiece(messages, receipts, tuple(log.topic for log in self.own), self.cursor)


def plan_tenant_erasure(found: LogPiece) -> TenantErasure:
    """Plan to erase some of the first logs of a tenant."""
    logs = take_logs(found.logs, ERASED_ENTRIES)
    return TenantErasure(logs, is_last=len(logs) == len(found.logs) and not found.more)


def plan_user_erasure(found: LogPiece, user: str, cursor: Cursor | None) -> UserErasure:
    """Plan to erase a user's entries in some logs, which begin with the one of the cursor.

    A cursor is a topic_id and the seq up to which that log is done.
    """
    topic_id, done_seq = cursor or START
    own = [log for log in found.logs if log.topic[3] in (PERSON, USER) and log.topic[4] == user]
    others = [log for log in found.logs if log not in own]
    spans = take_entries(others, SEARCHED_ENTRIES, topic_id, done_seq)
    if spans:
        topic_id, done_seq = spans[-1].topic_id, spans[-1].last
    more = found.more or [span.last for span in spans] != [log.last for log in others]
    return UserErasure(own, spans, (topic_id, done_seq) if more else None)
