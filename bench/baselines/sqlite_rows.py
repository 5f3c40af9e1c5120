"""Baseline on bare SQLite: WAL and synchronous=FULL like Trunkline's log, but one commit per row."""

import sqlite3
import sys
import time
from pathlib import Path

from bench.commands import emit
from bench.loadgen.chat_text import chat_text

CONVERSATIONS = 100


def open_log(folder: Path) -> sqlite3.Connection:
    """Create an empty log."""
    log = sqlite3.connect(folder / "rows.db", isolation_level=None, check_same_thread=False)
    log.execute("PRAGMA journal_mode=WAL")
    log.execute("PRAGMA synchronous=FULL")
    log.execute("CREATE TABLE messages (seq INTEGER PRIMARY KEY, conversation TEXT, text TEXT, at REAL)")
    return log


def insert(log: sqlite3.Connection, conversation: str, text: str) -> int:
    """Insert and commit one row; return its number."""
    row = log.execute(
        "INSERT INTO messages (conversation, text, at) VALUES (?, ?, ?)",
        (conversation, text, time.time()),
    )
    return row.lastrowid or 0


def main(folder: Path, seconds: float) -> None:
    """Insert rows for `seconds` and report their number."""
    log, rows, began = open_log(folder), 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        insert(log, f"person:{rows % CONVERSATIONS}", chat_text(rows, time.monotonic_ns()))
        rows += 1
    emit(accepted=rows, elapsed_s=elapsed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
