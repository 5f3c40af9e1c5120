"""Head of a topic: its address and the last position published to this edge's subscribers."""

from __future__ import annotations

from trunkline.v1.address_pb2 import Position


class TopicHead:
    """Address of a topic, and how far its subscribers have come."""

    __slots__ = ("_cursor_token", "address", "epoch", "seq")

    def __init__(self, address: bytes, epoch: str, seq: int) -> None:
        #: The serialized Address, which identifies the topic across links.
        self.address = address
        self.epoch = epoch
        self.seq = seq
        #: Empty until `cursor_token` is read after a move.
        self._cursor_token = b""

    @property
    def cursor_token(self) -> bytes:
        """The position as one word, `epoch.seq`; formatted once for all subscribers."""
        if not self._cursor_token:
            self._cursor_token = b"%b.%d" % (self.epoch.encode(), self.seq)
        return self._cursor_token

    def advance(self, position: Position) -> bool:
        """Move to a position; an older one of the same epoch is ignored. Return True if the epoch changed."""
        if position.epoch != self.epoch:
            self.epoch, self.seq = position.epoch, position.seq
            self._cursor_token = b""
            return True
        if position.seq > self.seq:
            self.seq = position.seq
            self._cursor_token = b""
        return False

    def __repr__(self) -> str:
        return f"<TopicHead {self.epoch}.{self.seq}>"
