"""Forks logs: begins new epochs after committed entries were lost, so that no position hides the gap.

Entries before the fork stay, with the ids that they have. Positions of the former epoch are invalid, as they
may lie beyond the loss. Seqs continue; a seq that a lost entry had gets another id by the new epoch.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from trunkline_router.log.batch import IDS_PER_MS, SKIPPED_IDS
from trunkline_router.log.encryption import MAX_SEALED
from trunkline_router.log.message_ids import new_epoch
from trunkline_router.log.sqlite.statements import END

_KEEP_EPOCHS = (
    "INSERT INTO former_epochs (topic_id, first_seq, last_seq, epoch)"
    f" SELECT topic_id, forked + 1, {END}, epoch FROM topics WHERE {END} > forked"
)
_BEGIN_EPOCHS = f"UPDATE topics SET epoch = new_epoch(), forked = {END}"
_KEEP_EPOCH = (
    "INSERT INTO former_epochs (topic_id, first_seq, last_seq, epoch)"
    " SELECT topic_id, forked + 1, ?, ? FROM topics WHERE topic_id = ? AND ? > forked"
)
_BEGIN_EPOCH = "UPDATE topics SET epoch = ?, forked = ? WHERE topic_id = ?"
#: Before a counter is set: SQLite makes the row of a table with its first row.
NEW_COUNTER = (
    "INSERT INTO sqlite_sequence (name, seq) SELECT ?1, 0"
    " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)"
)
#: The second operand matters if the clock was set back since an earlier fork.
_SKIP_BY_CLOCK = "CASE WHEN ?1 > {0} THEN ?1 ELSE {0} + ?2 END"
_SKIP_TOPIC_IDS = "UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'topics'"
_SKIP_DELIVERY_IDS = (
    f"UPDATE sqlite_sequence SET seq = {_SKIP_BY_CLOCK.format('seq')} WHERE name = 'deliveries'"
)
_SKIP_PRODUCER_EPOCHS = f"UPDATE open_messages SET producer_epoch = {_SKIP_BY_CLOCK.format('producer_epoch')}"


def fork_logs(db: sqlite3.Connection, forks: Iterable[tuple[int, str, int, str]]) -> None:
    """Fork single logs, each given as topic_id, former epoch, last seq and new epoch.

    Their entries may be those that were written at the seqs of lost ones: only their ids are kept.
    """
    for topic_id, former, seq, epoch in forks:
        db.execute(_KEEP_EPOCH, (seq, former, topic_id, seq))
        db.execute(_BEGIN_EPOCH, (epoch, seq, topic_id))


def fork_all(db: sqlite3.Connection) -> int:
    """Fork every log of a file, in the caller's transaction. Returns their number.

    The file gets another identity: the one that the lost commits belong to may still be around.
    Also skips ids of topics and deliveries, and epochs of producers: those given since are not given again.
    The keys of tenants encrypt nothing more. Takes some 20 µs for each log.
    """
    db.create_function("new_epoch", 0, new_epoch)
    db.execute("INSERT OR REPLACE INTO former_logs SELECT log_id, commits FROM log_state")
    db.execute("UPDATE log_state SET log_id = lower(hex(randomblob(8))) WHERE id = 1")
    db.execute(_KEEP_EPOCHS)
    logs = db.execute(_BEGIN_EPOCHS).rowcount
    for name in ("topics", "deliveries"):
        db.execute(NEW_COUNTER, (name,))
    now_ms = time.time_ns() // 1_000_000
    db.execute(_SKIP_TOPIC_IDS, (SKIPPED_IDS,))
    db.execute(_SKIP_DELIVERY_IDS, (now_ms * IDS_PER_MS, SKIPPED_IDS))
    db.execute(_SKIP_PRODUCER_EPOCHS, (now_ms, SKIPPED_IDS))
    # Lost commits may have used the keys.
    db.execute("UPDATE tenant_keys SET reserved = ?", (MAX_SEALED,))
    return logs
