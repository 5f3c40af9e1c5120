"""Completes pending entries with their results: committed, or a repeat of an earlier entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trunkline_router.core.values.log_records import AppendResult, EntryKind, PendingEntry
from trunkline_router.log.batch import Batch
from trunkline_router.log.message_ids import message_id

#: Routers keep idempotency keys for at least so long.
KEEP_KEYS_MS = 26 * 3_600_000


class StoredResult(NamedTuple):
    """The result of the first entry with an idempotency key, as an engine stores it."""

    digest: bytes
    #: In which the entry was written: the one of its id.
    epoch: str
    seq: int
    connections: int
    #: In which its position is valid now.
    position_epoch: str


def split_repeats(entries: Sequence[PendingEntry]) -> tuple[list[PendingEntry], list[PendingEntry]]:
    """Split entries into those to write and those that repeat the key of one of them."""
    seen: set[bytes] = set()
    first: list[PendingEntry] = []
    repeats: list[PendingEntry] = []
    for pending in entries:
        if pending.key is None:
            first.append(pending)
        elif pending.key in seen:
            repeats.append(pending)
        else:
            seen.add(pending.key)
            first.append(pending)
    return first, repeats


def mark_committed(entries: Sequence[PendingEntry], batch: Batch) -> None:
    """Complete the entries of a batch that is committed."""
    for pending, body in zip(entries, batch.bodies, strict=True):
        pending.stored = body
        pending.result = AppendResult.COMMITTED
    if batch.answered_cancelled:
        for pending in entries:
            if pending.producer is not None:
                answered = (batch.heads[pending.topic].topic_id, pending.message.reply_to)
                pending.is_cancelled = answered in batch.answered_cancelled


def result_of(pending: PendingEntry) -> StoredResult:
    """The result of a committed entry, to answer repeats with."""
    position = pending.position
    return StoredResult(pending.digest, position.epoch, position.seq, pending.connections, position.epoch)


#: Compares the digest of an entry with the stored one.
SameContent = Callable[[bytes, bytes], bool]


def answer_repeat(
    pending: PendingEntry, results: Mapping[bytes, StoredResult], is_same_content: SameContent
) -> None:
    """Complete an entry that was not written with the result of the first entry with its key.

    The result is DUPLICATE for the same content, MISMATCH for other content, NO_REPEAT if the key is new.
    """
    first = None if pending.key is None else results.get(pending.key)
    if first is None:
        pending.result = AppendResult.NO_REPEAT
        return
    message = pending.message
    if pending.change is not None:
        pending.change.ClearField("changed_at")
    else:
        message.ClearField("created_at")
    pending.delivery_id = 0
    is_lookup = pending.repeat_only and not pending.digest
    if is_lookup or is_same_content(pending.digest, first.digest):
        pending.result = AppendResult.DUPLICATE
        pending.connections = first.connections
        pending.position.epoch = first.position_epoch
        pending.position.seq = first.seq
        if pending.kind is EntryKind.MESSAGE:
            message.id = message_id(first.epoch, first.seq)
        return
    pending.result = AppendResult.MISMATCH
    if pending.change is not None:
        pending.change.ClearField("position")
    elif pending.read is not None:
        pending.read.ClearField("at")
    else:
        message.ClearField("id")
        message.ClearField("position")
