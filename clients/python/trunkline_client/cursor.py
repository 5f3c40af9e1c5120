"""How far one topic's log has been received. Pure."""

from __future__ import annotations

from enum import Enum

from trunkline.v1.address_pb2 import Address, Position

#: Messages that may be held beyond a hole before the hole is taken for a gap.
MAX_AHEAD = 1000


def topic_key(address: Address) -> bytes:
    """The topic as something to hash and compare."""
    return address.SerializeToString(deterministic=True)


class Arrival(Enum):
    """What a position means to a cursor."""

    #: It is new.
    NEW = 0
    #: It is new, and the log began anew with it.
    NEW_EPOCH = 1
    #: It was there before.
    REPEATED = 2
    #: Something before it is missing; the cursor stays where it was.
    GAP = 3


class Cursor:
    """One topic's position, and what has been received beyond it.

    Messages come in order, save that a message of our own comes as an `ack`, which may be late: after
    the router restarted, what others said meanwhile is replayed before our resent message is acked. So
    a hole is not a gap as long as an unanswered message of our own may fill it.
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
        """Everything up to here has been received."""
        return Position(epoch=self.epoch, seq=self.seq)

    @property
    def holes(self) -> int:
        """How many messages are missing below what was received."""
        return max(self._ahead) - self.seq - len(self._ahead) if self._ahead else 0

    def stands_at(self, position: Position) -> bool:
        """Whether this is the cursor's position; the empty log's has no epoch until something is said."""
        if position.seq != self.seq:
            return False
        return position.epoch == self.epoch or (self.seq == 0 and not (position.epoch and self.epoch))

    def arrived(self, position: Position, may_be_ours: int) -> Arrival:
        """Takes note of a position. `may_be_ours`: unanswered messages of our own to this topic."""
        if position.epoch != self.epoch and (self.epoch or self.seq):
            return self._arrived_anew(position)
        seq = position.seq
        if seq <= self.seq or seq in self._ahead:
            return Arrival.REPEATED
        if seq > self.seq + 1:
            if self._holes_with(seq) > may_be_ours or len(self._ahead) >= MAX_AHEAD:
                return Arrival.GAP
            self.hold(position)
            return Arrival.NEW
        self.epoch, self.seq = position.epoch, seq
        self._close_up()
        return Arrival.NEW

    def hold(self, position: Position) -> None:
        """Takes a position beyond a hole for received: it is REPEATED when it comes once more."""
        self.epoch = position.epoch
        self._ahead.add(position.seq)

    def _arrived_anew(self, position: Position) -> Arrival:
        if position.seq != 1:
            return Arrival.GAP
        self.epoch, self.seq = position.epoch, 1
        self._ahead.clear()
        return Arrival.NEW_EPOCH

    def _holes_with(self, seq: int) -> int:
        return max(seq, *self._ahead) - self.seq - len(self._ahead) - 1 if self._ahead else seq - self.seq - 1

    def _close_up(self) -> None:
        while self.seq + 1 in self._ahead:
            self.seq += 1
            self._ahead.remove(self.seq)
