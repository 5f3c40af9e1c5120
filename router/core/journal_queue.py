"""Drafts and settlements that wait to be committed."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from trunkline.v1.catalogue import Refused

from router.core.journal import Draft

#: At most so many drafts in one transaction, which bounds how long a commit takes.
MAX_BATCH_DRAFTS = 2048


class SettlementOrigin(Protocol):
    """Whom to tell what became of a settlement."""

    def done(self) -> None:
        """All of it is on disk."""

    def failed(self, reason: Refused) -> None:
        """None of it is."""


class SettlementUnit(NamedTuple):
    """A settlement and its replies: committed together or not at all."""

    delivery_id: int
    replies: list[Draft]
    origin: SettlementOrigin


class JournalQueue:
    """What waits to be committed, in order.

    `is_full` beyond `max_drafts` or `max_bytes`: sources are to send no more until it is not. Adding
    never fails: what sources have under way, bounded by their credit, is still taken.
    """

    def __init__(self, max_drafts: int = 20_000, max_bytes: int = 16 << 20) -> None:
        self.max_drafts = max_drafts
        self.max_bytes = max_bytes
        self.drafts = 0
        self.bytes = 0
        self._units: deque[Draft | SettlementUnit] = deque()

    def add(self, draft: Draft, size: int) -> None:
        """A message to be committed; `size` is about that of its serialized form."""
        draft.size = size
        self.drafts += 1
        self.bytes += size
        self._units.append(draft)

    def add_settlement(self, unit: SettlementUnit) -> None:
        """A settlement to be committed."""
        for draft in unit.replies:
            draft.size = draft.message.ByteSize()
            self.drafts += 1
            self.bytes += draft.size
        self._units.append(unit)

    @property
    def is_full(self) -> bool:
        """Sources are to send no more."""
        return self.drafts > self.max_drafts or self.bytes > self.max_bytes

    def __bool__(self) -> bool:
        return bool(self._units)

    def take(self) -> tuple[list[Draft], list[SettlementUnit]]:
        """The next batch: its drafts, those of settlements among them, and its settlements."""
        drafts: list[Draft] = []
        settlements: list[SettlementUnit] = []
        units = self._units
        while units and len(drafts) + len(settlements) < MAX_BATCH_DRAFTS:
            unit = units.popleft()
            if isinstance(unit, Draft):
                drafts.append(unit)
            else:
                settlements.append(unit)
                drafts.extend(unit.replies)
        self.drafts -= len(drafts)
        self.bytes -= sum(draft.size for draft in drafts)
        return drafts, settlements
