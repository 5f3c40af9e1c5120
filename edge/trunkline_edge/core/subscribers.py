"""Subscribers of a topic with the same codec and rollup window; frames are encoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.counters import EdgeCounters
from trunkline_edge.core.deltas import DeltaIndex, DeltaRange, EncodedDeltas, EncodedSnapshots
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.dialects.codec import Codec


class OutgoingFrame(NamedTuple):
    """A frame for the subscribers of a topic."""

    frame: ServerFrame
    #: Number of the connection that must not receive it; 0 for none.
    excluded: int
    #: Where the deltas of the open message in it continue; None if there is none.
    continues_at: DeltaIndex | None
    #: The same frame for codecs that do not stream deltas: an end carries its message.
    without_deltas: ServerFrame


class SubscriberGroup:
    """Subscribers of one topic with the same codec and rollup window.

    Deltas gather in `deltas`. `flushed` counts those that subscribers have received, from the beginning of
    the group, and `offsets` does for each subscriber that differs: it is ahead if another frame had to be
    sent to it before the window's end, behind if it has a backlog. Deltas that all have received are dropped.

    Bounds: Rollup flushes a window that holds too much; deltas that wait for a subscriber count towards its
    backlog, and ClientBackpressure closes it if that is too large.
    """

    __slots__ = (
        "_base",
        "_encoded",
        "codec",
        "deltas",
        "due",
        "flushed",
        "offsets",
        "rollup_ms",
        "skips",
        "snapshots",
        "subscribers",
        "waiting_bytes",
    )

    def __init__(self, codec: Codec, rollup_ms: int, snapshots: StreamSnapshots | None = None) -> None:
        self.codec = codec
        self.rollup_ms = rollup_ms
        #: The topic's, if the codec does not stream deltas; else None.
        self.snapshots = snapshots
        self.subscribers: set[Connection] = set()
        self.deltas: list[DeltaRange] = []
        self._base = 0
        self.flushed = 0
        self.offsets: dict[Connection, int] = {}
        #: By subscriber, then message: deltas below this index were in a snapshot sent to it alone.
        self.skips: dict[Connection, dict[str, int]] = {}
        #: Since the last flush.
        self.waiting_bytes = 0
        #: Tick at which the Rollup ends the window; None while no window is open.
        self.due: int | None = None
        self._encoded: dict[tuple[int, int], EncodedDeltas | EncodedSnapshots] = {}

    # Membership

    def add(self, connection: Connection) -> None:
        """Add a subscriber; deltas already waiting are not for it."""
        self.subscribers.add(connection)
        if self._end > self.flushed:
            self.offsets[connection] = self._end

    def remove(self, connection: Connection) -> None:
        """Remove a subscriber and drop what waits for it."""
        self.subscribers.discard(connection)
        self.offsets.pop(connection, None)
        self.skips.pop(connection, None)
        self._drop_delivered()

    def skip(self, connection: Connection, message_id: str, next_index: int) -> None:
        """Skip deltas below `next_index` for one subscriber, which has received a newer snapshot."""
        self.skips.setdefault(connection, {})[message_id] = next_index

    def unskip(self, message_id: str) -> None:
        """Skip nothing of this message any longer: all subscribers have the same of it."""
        for connection, skip in list(self.skips.items()):
            skip.pop(message_id, None)
            if not skip:
                del self.skips[connection]

    # Frames

    def deliver(
        self, frames: Sequence[OutgoingFrame], encoded: Sequence[bytes], counts: EdgeCounters
    ) -> bool:
        """Append `frames`, encoded, to each subscriber's pending data. Earlier deltas must be flushed.

        Return False if the codec sends nothing for any of them.
        """
        data = encoded[0] if len(encoded) == 1 else b"".join(encoded)
        if not data:
            return False
        counts.deliveries += (len(encoded) - encoded.count(b"")) * len(self.subscribers)
        if excluded := {frame.excluded for frame in frames if frame.excluded}:
            self._deliver_except(excluded, frames, encoded, data, counts)
        else:
            for connection in self.subscribers:
                connection.pending.append(data)
        for frame in frames:
            if frame.continues_at is not None:
                self._continue_at(frame.continues_at, frame.excluded)
        return True

    def _deliver_except(
        self,
        excluded: set[int],
        frames: Sequence[OutgoingFrame],
        encoded: Sequence[bytes],
        data: bytes,
        counts: EdgeCounters,
    ) -> None:
        """Deliver to each subscriber all but the frames that exclude it, which were counted already."""
        for connection in self.subscribers:
            if connection.number not in excluded:
                connection.pending.append(data)
                continue
            for frame, one in zip(frames, encoded, strict=True):
                if frame.excluded != connection.number:
                    connection.pending.append(one)
                elif one:
                    counts.deliveries -= 1

    def _continue_at(self, index: DeltaIndex, excluded: int) -> None:
        for connection in self.subscribers:
            if connection.number != excluded:
                connection.last_delta = index

    # Deltas

    def flush(self, counts: EdgeCounters, everybody: bool) -> None:
        """Deliver waiting deltas to all subscribers; if `everybody`, also to those with a backlog.

        Backlogged subscribers must be included if a frame follows the deltas.
        """
        start, end = self.flushed, self._end
        apart: list[Connection] = []
        if self.offsets or self.skips:
            apart = [*self.offsets, *(one for one in self.skips if one not in self.offsets)]
        if end > start and len(apart) < len(self.subscribers):
            self._deliver_deltas(
                self.subscribers.difference(apart) if apart else self.subscribers, counts, everybody
            )
        for connection in apart:
            since = self.offsets.pop(connection, start)
            if connection.has_backlog and not everybody:
                if since < end:
                    self.offsets[connection] = since
            elif since < end:
                self._deliver_since(connection, since, counts)
        self.flushed = end
        self.waiting_bytes = 0
        self._encoded.clear()
        self._drop_delivered()

    def _deliver_deltas(self, subscribers: set[Connection], counts: EdgeCounters, everybody: bool) -> None:
        start = self.flushed
        encoded = self._encode_since(start)
        if not encoded.frames:
            return
        begin, end = encoded.begin, encoded.end
        short: bytes | None = None
        long: bytes | None = None
        backlogged = 0
        for connection in subscribers:
            if connection.has_backlog and not everybody:
                self.offsets[connection] = start
                backlogged += 1
                continue
            if connection.last_delta == begin:
                if short is None:
                    short = encoded.short()
                connection.pending.append(short)
            else:
                if long is None:
                    long = encoded.long()
                connection.pending.append(long)
            connection.last_delta = end
        counts.count_deltas(encoded.frames, encoded.deltas, len(subscribers) - backlogged)

    def flush_one(self, connection: Connection, counts: EdgeCounters) -> None:
        """Deliver to one subscriber all that waits for it; the others' window stays open."""
        since = self.offsets.pop(connection, self.flushed)
        if since < self._end:
            self._deliver_since(connection, since, counts)
        if self.flushed < self._end:
            self.offsets[connection] = self._end
        else:
            self._drop_delivered()

    def _deliver_since(self, connection: Connection, since: int, counts: EdgeCounters) -> None:
        encoded: EncodedDeltas | EncodedSnapshots | None
        if connection in self.skips:
            unknown = self._take_unknown(connection, self.deltas[since - self._base :])
            encoded = self._encode(unknown) if unknown else None
        else:
            encoded = self._encode_since(since)
        if encoded is not None and encoded.frames:
            continues = connection.last_delta == encoded.begin
            connection.pending.append(encoded.short() if continues else encoded.long())
            connection.last_delta = encoded.end
            counts.count_deltas(encoded.frames, encoded.deltas, 1)

    def _take_unknown(self, connection: Connection, deltas: list[DeltaRange]) -> list[DeltaRange]:
        """Return the deltas that its snapshots do not hold; the first of a message ends the skip."""
        skip = self.skips[connection]
        unknown = []
        for one in deltas:
            if one.index >= skip.get(one.message_id, 0):
                skip.pop(one.message_id, None)
                unknown.append(one)
        if not skip:
            del self.skips[connection]
        return unknown

    def _encode_since(self, since: int) -> EncodedDeltas | EncodedSnapshots:
        """Encode the deltas from an offset on, once for all subscribers at it."""
        key = since, self._end
        encoded = self._encoded.get(key)
        if encoded is None:
            waiting = self.deltas[since - self._base :] if since > self._base else self.deltas
            encoded = self._encoded[key] = self._encode(waiting)
        return encoded

    def _encode(self, deltas: Sequence[DeltaRange]) -> EncodedDeltas | EncodedSnapshots:
        if self.snapshots is None:
            return EncodedDeltas(self.codec, deltas)
        return EncodedSnapshots(self.codec, deltas, self.snapshots)

    @property
    def _end(self) -> int:
        return self._base + len(self.deltas)

    def is_behind(self, connection: Connection) -> bool:
        """Return True if others have received deltas that this subscriber has not."""
        return self.offsets.get(connection, self.flushed) < self.flushed

    def backlog_bytes(self, connection: Connection) -> int:
        """Return about how many bytes of deltas wait for a subscriber with a backlog."""
        since = self.offsets.get(connection)
        if since is None or since == self._end:
            return 0
        last = self.deltas[-1]
        return last.before + last.size - self.deltas[since - self._base].before

    def _drop_delivered(self) -> None:
        low = min(self.flushed, *self.offsets.values()) if self.offsets else self.flushed
        if low > self._base:
            del self.deltas[: low - self._base]
            self._base = low

    def __repr__(self) -> str:
        return f"<SubscriberGroup {self.codec.name}, {len(self.subscribers)} subscribers>"
