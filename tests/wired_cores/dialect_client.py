"""A client of a dialect: receives whole messages and its own echo, and keeps no positions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Change,
    Message,
)
from trunkline_edge.core.connection import Connection
from trunkline_edge.dialects.codec import StreamingMode
from trunkline_router.core.values.topics import TopicKey, topic_of

from tests.edge.core.core_harness import parsed
from tests.edge.core.snapshot_codec import WAYS, Shown, text_of
from tests.wired_cores.client import Client, Place, copy_of

if TYPE_CHECKING:
    from tests.wired_cores.edge import EdgeSide
    from tests.wired_cores.harness import World


class ShownClient(Client):
    """Records the messages it receives, and their states."""

    def __init__(
        self, world: World, edge: EdgeSide, connection: Connection, user: str, before: Client | None
    ) -> None:
        super().__init__(world, edge, connection, user, before)
        assert isinstance(connection.codec, Shown)
        self.replies = self.asks_for = connection.codec.streaming
        #: By message: how often it was shown as one that has ended.
        self.shown: Counter[str] = Counter()
        #: Messages that were open when it asked to be shown those: it is, once something is added.
        self.unshown: set[str] = set()
        #: Where it began in its topics, on an earlier connection.
        self.began: dict[TopicKey, int] = {}
        self.left.clear()
        if before is not None:
            self.began = {key: place.start for key, place in before.topics.items()}

    def switch(self, word: bytes, frame: ClientFrame | None = None) -> None:
        """Switch to another streaming mode."""
        if self.is_open:
            payload = b"" if frame is None else self.payload(frame)
            self.asks_for = WAYS[word]
            self.edge.core.client_frames.received(self.connection, word + payload)
            self.take()
            self.replies = self.asks_for
            if self.replies is StreamingMode.SNAPSHOTS:
                self.unshown |= set(self.world.log.open)

    def take(self) -> None:
        """Read everything written."""
        for each in parsed(self.take_pending()):
            payload = bytes(each.data)
            assert payload, "an empty frame"
            if payload in WAYS:
                assert self.asks_for is WAYS[payload]
                continue
            frame = ServerFrame.FromString(payload)
            kind = frame.WhichOneof("frame") or ""
            assert not self.closed_for, f"{kind} after closing"
            assert self.is_connected == (kind != "connected") or kind == "closing"
            assert kind != "delta"
            if kind == "error":
                # Its own frames, such as `read`, may fail.
                assert frame.error.id or frame.error.code in ("LOG_UNAVAILABLE", "INVALID_ARGUMENT")
            self._receive(kind, getattr(frame, kind))

    def _begin(self, key: TopicKey, seq: int, recovered: bool) -> None:
        if key in self.topics:
            return
        if recovered:
            seq = min(seq, self.began.get(key, seq))
        else:
            self._forget(key)
        self.topics[key] = Place(seq)

    def _forget(self, key: TopicKey) -> None:
        for ident in [ident for ident, m in self.known.items() if topic_of(m.address) == key]:
            del self.known[ident], self.shown[ident]

    def _answer(self, kind: str, frame: Any) -> None:
        super()._answer(kind, frame)
        if kind == "unsubscribed":
            key = topic_of(frame.address)
            del self.left[key]
            self._forget(key)

    def _entry(self, key: TopicKey, seq: int) -> None:
        """Ignore an entry: the client receives no positions."""

    def _message(self, message: Message) -> None:
        known = self.known.get(message.id)
        if message.author.role == ROLE_AGENT and message.next_index:
            indexes = [int(token.partition(".")[0]) for token in text_of(message).split()]
            assert indexes == [*range(message.next_index)], f"{message.id}: {indexes}"
        self.unshown.discard(message.id)
        if message.state == MESSAGE_STATE_OPEN:
            assert StreamingMode.SNAPSHOTS in (self.replies, self.asks_for)
            assert known is None or known.state == MESSAGE_STATE_OPEN, f"{message.id} is open again"
        else:
            self.shown[message.id] += 1
        self.known[message.id] = copy_of(message)

    def _change(self, change: Change) -> None:
        assert change.kind == CHANGE_KIND_RECALLED, "an end or an edit comes as a message"
        assert not change.HasField("message")
        known = self.known.setdefault(
            change.message_id, Message(id=change.message_id, address=change.address)
        )
        known.state = change.state
        del known.parts[:]

    def _ack(self, ack: AckFrame, request: ClientFrame) -> None:
        """Ignore an ack: the client receives its own messages."""

    def missing(self) -> dict[TopicKey, set[int]]:
        """Return, by topic, the ends that it has not received, and a stand-in for a duplicate."""
        gaps: dict[TopicKey, set[int]] = {}
        for key, place in self.topics.items():
            changes = self.world.log.changes(key)
            for change in changes:
                if change.kind == CHANGE_KIND_ENDED and change.position.seq > place.start:
                    known = self.known.get(change.message_id)
                    if known is None or known.state == MESSAGE_STATE_OPEN:
                        gaps.setdefault(key, set()).add(change.position.seq)
            later = Counter(change.message_id for change in changes if change.kind != CHANGE_KIND_ENDED)
            for message in self.world.truth(key):
                assert self.shown[message.id] <= 1 + later[message.id], f"{message.id} is shown twice"
        return gaps

    def check(self) -> None:
        """Check that the client holds every message it should, in its current form."""
        assert self.is_connected
        assert self.missing() == {}
        assert set(self.asked.values()) <= {1}, self.asked
        for key, place in self.topics.items():
            for message in self.world.truth(key):
                not_shown = self.replies is StreamingMode.COMPLETE or message.id in self.unshown
                if message.state == MESSAGE_STATE_OPEN and not_shown:
                    continue
                known = self.known.get(message.id)
                if known is None:
                    assert message.position.seq <= place.start, f"{message.id} is not known"
                    assert message.state != MESSAGE_STATE_OPEN, f"{message.id} is not known"
                else:
                    sent, truth = (known.state, [*known.parts]), (message.state, [*message.parts])
                    assert sent == truth, f"{message.id}"
