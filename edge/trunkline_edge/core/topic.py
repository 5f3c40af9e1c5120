"""One topic, as the edge knows it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from trunkline.v1.address_pb2 import Position

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.resume_cursor import mark_of
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.core.subscribers import OutgoingFrame, SubscriberGroup
from trunkline_edge.dialects.codec import Codec, StreamingMode


class SubscribedTopic:
    """A topic that connections of this edge hear.

    `run` gathers frames that are ready together; they are encoded once per audience, joined, and given
    to each listener as one piece. Deltas wait with each audience. Never do both hold something: a
    frame first has the deltas flushed, and a delta the run.
    """

    __slots__ = (
        "address",
        "audiences",
        "delta_bytes",
        "epoch",
        "mark",
        "number",
        "open",
        "run",
        "seq",
        "texts",
    )

    def __init__(self, number: int, address: bytes, epoch: str, seq: int) -> None:
        #: On the link; another one after each re-link.
        self.number = number
        #: The serialized Address, which names it across links.
        self.address = address
        #: How far the listeners have come.
        self.epoch = epoch
        self.seq = seq
        #: The same in one word; empty until somebody asks, see `marked`.
        self.mark = b""
        #: By codec and window; none is empty.
        self.audiences: dict[tuple[Codec, int], SubscriberGroup] = {}
        self.run: list[OutgoingFrame] = []
        #: Open messages, and for each the index that its next delta will have.
        self.open: dict[str, int] = {}
        #: What was said so far in those; None while all who hear the topic are shown deltas.
        self.texts: StreamSnapshots | None = None
        #: All that ever came.
        self.delta_bytes = 0

    def advance(self, position: Position) -> None:
        """The listeners have come as far as this; what is told again does not take them back."""
        if position.epoch != self.epoch:
            # The log was begun anew, and what was open in the old one will never end.
            self._forget_open()
            self.epoch, self.seq = position.epoch, position.seq
        elif position.seq > self.seq:
            self.seq = position.seq
        else:
            return
        self.mark = b""

    def marked(self) -> bytes:
        """The `mark`, made for all who ask."""
        self.mark = mark_of(self.epoch, self.seq)
        return self.mark

    def _forget_open(self) -> None:
        self.open.clear()
        if self.texts is not None:
            self.texts.clear()
        for audience in self.audiences.values():
            audience.skips.clear()

    def listeners(self) -> Iterator[Connection]:
        """All who hear it."""
        return chain.from_iterable(audience.listeners for audience in self.audiences.values())

    def join(self, connection: Connection) -> None:
        """A connection listens."""
        if self not in connection.topics:
            self._seat(connection)

    def _seat(self, connection: Connection) -> None:
        """Among those who hear it alike."""
        key = connection.codec, connection.rollup_ms
        audience = self.audiences.get(key)
        if audience is None:
            texts = None
            if connection.codec.streaming is not StreamingMode.DELTAS:
                texts = self.texts = self.texts or StreamSnapshots()
            audience = self.audiences[key] = SubscriberGroup(*key, texts)
        audience.join(connection)
        connection.topics[self] = audience

    def move(self, connection: Connection) -> SubscriberGroup | None:
        """A listener has another codec now; nothing waits for it. Returns its old audience, if deserted."""
        before = connection.topics[self]
        skips = before.skips.pop(connection, None)
        self._seat(connection)
        if skips is not None:
            connection.topics[self].skips[connection] = skips
        return self._part(connection, before)

    def leave(self, connection: Connection) -> SubscriberGroup | None:
        """A connection listens no longer. Returns its audience if that is empty now, and dropped."""
        audience = connection.topics.pop(self, None)
        if audience is None:
            return None
        return self._part(connection, audience)

    def _part(self, connection: Connection, audience: SubscriberGroup) -> SubscriberGroup | None:
        audience.leave(connection)
        if audience.listeners:
            return None
        del self.audiences[audience.codec, audience.rollup_ms]
        if audience.texts is not None and all(other.texts is None for other in self.audiences.values()):
            self.texts = None
        if not self.audiences:
            # Whoever comes next begins with a snapshot of what is open.
            self._forget_open()
        return audience
