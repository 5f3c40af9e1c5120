"""What becomes of drafts: those that are written, and those that repeat what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trunkline_router.core.values.log_records import AppendResult, EntryKind, PendingEntry
from trunkline_router.log.batch import Batch
from trunkline_router.log.sqlite.idempotency_keys import StoredResult


def first_of_each_key(drafts: Sequence[PendingEntry]) -> tuple[list[PendingEntry], list[PendingEntry]]:
    """The drafts to write, and those that repeat the key of one of them."""
    seen: set[bytes] = set()
    first: list[PendingEntry] = []
    repeats: list[PendingEntry] = []
    for draft in drafts:
        if draft.key is None:
            first.append(draft)
        elif draft.key in seen:
            repeats.append(draft)
        else:
            seen.add(draft.key)
            first.append(draft)
    return first, repeats


def conclude(drafts: Sequence[PendingEntry], batch: Batch) -> None:
    """These drafts, of which the batch was made, are committed."""
    for draft, body in zip(drafts, batch.bodies, strict=True):
        draft.stored = body
        draft.verdict = AppendResult.COMMITTED


def kept_of(draft: PendingEntry) -> StoredResult:
    """What is kept of a draft that was committed."""
    place = draft.place
    return StoredResult(draft.digest, place.epoch, place.seq, draft.connections)


def answer_again(draft: PendingEntry, kept: Mapping[bytes, StoredResult]) -> None:
    """Give a draft that was not written the outcome of the first one with its key, or refuse it."""
    first = None if draft.key is None else kept.get(draft.key)
    if first is None:
        draft.verdict = AppendResult.NO_REPEAT
        return
    message = draft.message
    if draft.change is not None:
        draft.change.ClearField("changed_at")
    else:
        message.ClearField("created_at")
    draft.delivery_id = 0
    if draft.digest == first.digest or (draft.repeat_only and not draft.digest):
        draft.verdict = AppendResult.DUPLICATE
        draft.connections = first.connections
        draft.place.epoch = first.epoch
        draft.place.seq = first.seq
        if draft.kind is EntryKind.MESSAGE:
            message.id = f"{first.epoch}-{first.seq}"
        return
    draft.verdict = AppendResult.MISMATCH
    if draft.change is not None:
        draft.change.ClearField("position")
    elif draft.read is not None:
        draft.read.ClearField("at")
    else:
        message.ClearField("id")
        message.ClearField("position")
