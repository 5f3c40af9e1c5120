"""A client's position in one topic's log. Pure."""

from __future__ import annotations

from enum import Enum

from trunkline.v1.address_pb2 import Address, Position

#: Messages received beyond a hole before the hole is taken for a gap.
MAX_AHEAD = 1000


def topic_key(address: Address) -> bytes:
    """The topic as a value to hash and compare."""
    return address.SerializeToString(deterministic=True)


class Arrival(Enum):
    """Result of recording a position."""

    #: The entry is new.
    NEW = 0
    #: The entry is new, and the first of a log that has started over.
    NEW_EPOCH = 1
    #: The entry was received before.
    REPEATED = 2
    #: Entries before it are missing; the cursor has not moved.
    GAP = 3


class Cursor:
    """One topic's position, and the entries received beyond it.

    Entries arrive in order, except that a message of our own arrives as an `ack`, which may be late: after a
    router restart, messages of others are replayed before our resent message is acked. So a hole is not a gap
    as long as an unanswered message of our own may fill it.
    """

    __slots__ = ("_ahead", "epoch", "seq")

    def __init__(self, position: Position) -> None:
        self.epoch = position.epoch
        self.seq = position.seq
        self._ahead: set[int] = set()

    def __repr__(self) -> str:
        return f"<Cursor at {self.epoch}/{self.seq}, {len(self._ahead)} ahead>"

    @property
    def position(self) -> Position:
        """Everything up to this position has been received."""
        return Position(epoch=self.epoch, seq=self.seq)

    @property
    def missing(self) -> int:
        """Number of entries that are missing below the highest one received."""
        return max(self._ahead) - self.seq - len(self._ahead) if self._ahead else 0

    def is_at(self, position: Position) -> bool:
        """Whether the position is the cursor's; that of an empty log has no epoch until its first entry."""
        if position.seq != self.seq:
            return False
        return position.epoch == self.epoch or (self.seq == 0 and not (position.epoch and self.epoch))

    def record(self, position: Position, own_in_flight: int) -> Arrival:
        """Records the arrival of an entry.

        `own_in_flight` is the number of our own unanswered messages that may still become entries.
        """
        if position.epoch != self.epoch and (self.epoch or self.seq):
            return self._record_new_epoch(position)
        seq = position.seq
        if seq <= self.seq or seq in self._ahead:
            return Arrival.REPEATED
        if seq > self.seq + 1:
            if self._missing_with(seq) > own_in_flight or len(self._ahead) >= MAX_AHEAD:
                return Arrival.GAP
            self.record_ahead(position)
            return Arrival.NEW
        self.epoch, self.seq = position.epoch, seq
        self._close_holes()
        return Arrival.NEW

    def record_ahead(self, position: Position) -> None:
        """Records an entry beyond a hole, so that it is REPEATED when it arrives again."""
        self.epoch = position.epoch
        self._ahead.add(position.seq)

    def _record_new_epoch(self, position: Position) -> Arrival:
        if position.seq == self.seq + 1 and self.seq:
            # The log has lost entries, none of which this client has received.
            self.epoch, self.seq = position.epoch, position.seq
            self._ahead.clear()
            return Arrival.NEW
        if position.seq != 1:
            return Arrival.GAP
        self.epoch, self.seq = position.epoch, 1
        self._ahead.clear()
        return Arrival.NEW_EPOCH

    def _missing_with(self, seq: int) -> int:
        return max(seq, *self._ahead) - self.seq - len(self._ahead) - 1 if self._ahead else seq - self.seq - 1

    def _close_holes(self) -> None:
        while self.seq + 1 in self._ahead:
            self.seq += 1
            self._ahead.remove(self.seq)
