"""Those who hear a topic alike: same codec, same window. What they get is made once for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trunkline.v1.frame_pb2 import ServerFrame

from trunkline_edge.core.counters import EdgeCounters
from trunkline_edge.core.deltas import DeltaIndex, DeltaRange, EncodedDeltas, EncodedSnapshots
from trunkline_edge.core.encoding import encoded
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.dialects.codec import Codec

if TYPE_CHECKING:
    from trunkline_edge.core.connection import Connection


#: A frame for all who hear a topic; the number of the connection that it is not for, or 0; where the
#: deltas of the open message that it brings go on, or None; and what those get who are not shown deltas.
OutgoingFrame = tuple[ServerFrame, int, DeltaIndex | None, ServerFrame]


class SubscriberGroup:
    """Listeners of one topic with the same codec and the same window.

    Deltas wait in `additions`, of which `taken` says how far the listeners have been given them; both
    numbers, like those in `own`, count from the audience's beginning. `own` has the listeners that
    stand elsewhere: ahead, because something else had to be written to them before the window's end;
    or behind, because they lag. What all have been given is dropped.

    Bounds: what waits for a window is flushed once it is too much (Rollup); what waits for one that
    lags counts as buffered for it, and it is closed when that is too much.
    """

    __slots__ = (
        "_base",
        "_pieces",
        "additions",
        "codec",
        "due",
        "listeners",
        "own",
        "rollup_ms",
        "skips",
        "taken",
        "texts",
        "waiting_bytes",
    )

    def __init__(self, codec: Codec, rollup_ms: int, texts: StreamSnapshots | None = None) -> None:
        self.codec = codec
        self.rollup_ms = rollup_ms
        #: The topic's, for a codec whose clients are not shown deltas; else None.
        self.texts = texts
        self.listeners: set[Connection] = set()
        self.additions: list[DeltaRange] = []
        self._base = 0
        self.taken = 0
        self.own: dict[Connection, int] = {}
        #: By listener, then message: deltas below this index were in a snapshot that it alone was sent.
        self.skips: dict[Connection, dict[str, int]] = {}
        #: Since the last flush.
        self.waiting_bytes = 0
        #: The Rollup's: when the window ends, or None where nothing waits for that.
        self.due: int | None = None
        self._pieces: dict[tuple[int, int], EncodedDeltas | EncodedSnapshots] = {}

    # Who listens

    def join(self, connection: Connection) -> None:
        """A listener comes. What waits already is not for it."""
        self.listeners.add(connection)
        if self._end > self.taken:
            self.own[connection] = self._end

    def leave(self, connection: Connection) -> None:
        """A listener goes, whatever still waits for it."""
        self.listeners.discard(connection)
        self.own.pop(connection, None)
        self.skips.pop(connection, None)
        self._drop_taken()

    def skip(self, connection: Connection, message_id: str, next_index: int) -> None:
        """A listener knows this message further than the others."""
        self.skips.setdefault(connection, {})[message_id] = next_index

    def unskip(self, message_id: str) -> None:
        """All know the same of this message from here on."""
        for connection, skip in list(self.skips.items()):
            skip.pop(message_id, None)
            if not skip:
                del self.skips[connection]

    # Frames

    def tell(self, run: Sequence[OutgoingFrame], counts: EdgeCounters) -> bool:
        """Give frames to all, joined; whatever deltas came before have been flushed.

        False where the codec has nothing to say about any of them.
        """
        codec = self.codec
        if self.texts is None:
            pieces = [encoded(codec, frame) for frame, _, _, _ in run]
        else:
            pieces = [encoded(codec, whole) for _, _, _, whole in run]
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if not piece:
            return False
        counts.deliveries += (len(pieces) - pieces.count(b"")) * len(self.listeners)
        if excepted := {number for _, number, _, _ in run if number}:
            self._tell_but(excepted, run, pieces, counts)
        else:
            for connection in self.listeners:
                connection.pending.append(piece)
        for _, number, place, _ in run:
            if place is not None:
                self._goes_on(place, number)
        return True

    def _tell_but(
        self, excepted: set[int], run: Sequence[OutgoingFrame], pieces: Sequence[bytes], counts: EdgeCounters
    ) -> None:
        """Give each listener what is for it; as if all had been counted for all."""
        piece = b"".join(pieces)
        for connection in self.listeners:
            if connection.number not in excepted:
                connection.pending.append(piece)
                continue
            for (_, number, _, _), one in zip(run, pieces, strict=True):
                if number != connection.number:
                    connection.pending.append(one)
                elif one:
                    counts.deliveries -= 1

    def _goes_on(self, place: DeltaIndex, excepted: int) -> None:
        for connection in self.listeners:
            if connection.number != excepted:
                connection.goes_on = place

    # Deltas

    def flush(self, counts: EdgeCounters, everybody: bool) -> None:
        """Give what waits to all; to those that lag only if `everybody`, because a frame follows."""
        start, end = self.taken, self._end
        apart: list[Connection] = []
        if self.own or self.skips:
            apart = [*self.own, *(one for one in self.skips if one not in self.own)]
        if end > start and len(apart) < len(self.listeners):
            self._give_all(self.listeners.difference(apart) if apart else self.listeners, counts, everybody)
        for connection in apart:
            since = self.own.pop(connection, start)
            if connection.lags and not everybody:
                if since < end:
                    self.own[connection] = since
            elif since < end:
                self._give(connection, since, counts)
        self.taken = end
        self.waiting_bytes = 0
        self._pieces.clear()
        self._drop_taken()

    def _give_all(self, listeners: set[Connection], counts: EdgeCounters, everybody: bool) -> None:
        start = self.taken
        piece = self._piece(start)
        if not piece.frames:
            return
        begins, ends = piece.begins, piece.ends
        short: bytes | None = None
        long: bytes | None = None
        lagging = 0
        for connection in listeners:
            if connection.lags and not everybody:
                self.own[connection] = start
                lagging += 1
                continue
            if connection.goes_on == begins:
                if short is None:
                    short = piece.short()
                connection.pending.append(short)
            else:
                if long is None:
                    long = piece.long()
                connection.pending.append(long)
            connection.goes_on = ends
        counts.gave(piece.frames, piece.deltas, len(listeners) - lagging)

    def take(self, connection: Connection, counts: EdgeCounters) -> None:
        """Give one listener all that waits for it, now."""
        since = self.own.pop(connection, self.taken)
        if since < self._end:
            self._give(connection, since, counts)
        if self.taken < self._end:
            self.own[connection] = self._end
        else:
            self._drop_taken()

    def _give(self, connection: Connection, since: int, counts: EdgeCounters) -> None:
        piece: EncodedDeltas | EncodedSnapshots | None
        if connection in self.skips:
            news = self._unknown(connection, self.additions[since - self._base :])
            piece = self._made(news) if news else None
        else:
            piece = self._piece(since)
        if piece is not None and piece.frames:
            connection.pending.append(piece.short() if connection.goes_on == piece.begins else piece.long())
            connection.goes_on = piece.ends
            counts.gave(piece.frames, piece.deltas, 1)

    def _unknown(self, connection: Connection, additions: list[DeltaRange]) -> list[DeltaRange]:
        """Those that its snapshots do not hold; with the first of these a snapshot has served."""
        skip = self.skips[connection]
        news = []
        for one in additions:
            if one.index >= skip.get(one.message_id, 0):
                skip.pop(one.message_id, None)
                news.append(one)
        if not skip:
            del self.skips[connection]
        return news

    def _piece(self, since: int) -> EncodedDeltas | EncodedSnapshots:
        """What waits since then, made once for all who get the same."""
        key = since, self._end
        piece = self._pieces.get(key)
        if piece is None:
            waiting = self.additions[since - self._base :] if since > self._base else self.additions
            piece = self._pieces[key] = self._made(waiting)
        return piece

    def _made(self, additions: Sequence[DeltaRange]) -> EncodedDeltas | EncodedSnapshots:
        if self.texts is None:
            return EncodedDeltas(self.codec, additions)
        return EncodedSnapshots(self.codec, additions, self.texts)

    @property
    def _end(self) -> int:
        return self._base + len(self.additions)

    def is_behind(self, connection: Connection) -> bool:
        """The listener has not been given what others have."""
        return self.own.get(connection, self.taken) < self.taken

    def gathered_bytes(self, connection: Connection) -> int:
        """About how many bytes wait for a listener that lags."""
        since = self.own.get(connection)
        if since is None or since == self._end:
            return 0
        last = self.additions[-1]
        return last.before + last.size - self.additions[since - self._base].before

    def _drop_taken(self) -> None:
        low = min(self.taken, *self.own.values()) if self.own else self.taken
        if low > self._base:
            del self.additions[: low - self._base]
            self._base = low
