"""What becomes of entries: those that are written, and those that repeat what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trunkline_router.core.values.log_records import AppendResult, EntryKind, PendingEntry
from trunkline_router.log.batch import Batch
from trunkline_router.log.sqlite.idempotency_keys import StoredResult


def first_of_each_key(entries: Sequence[PendingEntry]) -> tuple[list[PendingEntry], list[PendingEntry]]:
    """The entries to write, and those that repeat the key of one of them."""
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


def conclude(entries: Sequence[PendingEntry], batch: Batch) -> None:
    """These entries, of which the batch was made, are committed."""
    for pending, body in zip(entries, batch.bodies, strict=True):
        pending.stored = body
        pending.result = AppendResult.COMMITTED


def kept_of(pending: PendingEntry) -> StoredResult:
    """What is kept of an entry that was committed."""
    place = pending.position
    return StoredResult(pending.digest, place.epoch, place.seq, pending.connections)


def answer_again(pending: PendingEntry, kept: Mapping[bytes, StoredResult]) -> None:
    """Give an entry that was not written the outcome of the first one with its key, or refuse it."""
    first = None if pending.key is None else kept.get(pending.key)
    if first is None:
        pending.result = AppendResult.NO_REPEAT
        return
    message = pending.message
    if pending.change is not None:
        pending.change.ClearField("changed_at")
    else:
        message.ClearField("created_at")
    pending.delivery_id = 0
    if pending.digest == first.digest or (pending.repeat_only and not pending.digest):
        pending.result = AppendResult.DUPLICATE
        pending.connections = first.connections
        pending.position.epoch = first.epoch
        pending.position.seq = first.seq
        if pending.kind is EntryKind.MESSAGE:
            message.id = f"{first.epoch}-{first.seq}"
        return
    pending.result = AppendResult.MISMATCH
    if pending.change is not None:
        pending.change.ClearField("position")
    elif pending.read is not None:
        pending.read.ClearField("at")
    else:
        message.ClearField("id")
        message.ClearField("position")
