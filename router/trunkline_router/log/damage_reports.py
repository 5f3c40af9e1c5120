"""Reports damaged entries: one log line for each, and a count."""

from __future__ import annotations

import structlog

_log = structlog.get_logger()

#: Entries that are remembered as reported; beyond that, one may be reported again.
MAX_REPORTED = 1_000


class DamageReports:
    """Damaged entries found by the reads of one log."""

    def __init__(self) -> None:
        #: Reads that met a damaged entry.
        self.reads = 0
        self._reported: set[tuple[int, int]] = set()

    def found(self, topic_id: int, seq: int) -> None:
        """A read met a damaged entry."""
        self.reads += 1
        if (topic_id, seq) in self._reported:
            return
        if len(self._reported) >= MAX_REPORTED:
            self._reported.clear()
        self._reported.add((topic_id, seq))
        _log.error(
            "a stored entry is damaged; readers get DATA_DAMAGED, see `trunkline-router check`",
            topic_id=topic_id,
            seq=seq,
            reads=self.reads,
        )
