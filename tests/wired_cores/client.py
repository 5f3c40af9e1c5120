"""A client as docs/protocol.md describes it, which checks the edge's promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trunkline.v1.address_pb2 import TopicPosition
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, DeltaFrame, ReadFrame, ServerFrame, SignalFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    Change,
    Message,
    Part,
)
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_router.core.values.topics import TopicKey, topic_of

from tests.edge.core.core_harness import group, parsed

if TYPE_CHECKING:
    from tests.wired_cores.edge import EdgeSide
    from tests.wired_cores.harness import World

HOME = topic_of(group("home"))
#: What is sent again on another connection where its answer did not come.
_LASTING = ("message", "edit", "recall")


class Place:
    """A client's position in a topic: its start, the entries it received, and its own by their `ack`."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.seen: list[int] = []
        self.own: set[int] = set()

    @property
    def highest(self) -> int:
        """Return the position to resume from."""
        return max([self.start, *self.seen, *self.own])


class Client:
    """Records what it receives. `before` is its state on an earlier connection."""

    def __init__(
        self, world: World, edge: EdgeSide, connection: Connection, user: str, before: Client | None
    ) -> None:
        self.world, self.edge, self.connection, self.user = world, edge, connection, user
        self.closed_for = ""
        self.is_connected = self.is_gone = False
        #: By id: the requests, and how often each was answered.
        self.asked: dict[str, int] = {}
        self.waiting: dict[str, ClientFrame] = {}
        self.topics: dict[TopicKey, Place] = {}
        #: How far it had come in topics that it left.
        self.left: dict[TopicKey, int] = {}
        #: Messages as they are, and of each that is open the index of the next delta.
        self.known: dict[str, Message] = {}
        self.next: dict[str, int] = {}
        #: Signals that were sent to it and live: conversation, user and name.
        self.living: set[tuple[str, str, str]] = set()
        self._last = ""
        #: To be sent again.
        self.unanswered: list[ClientFrame] = []
        if before is not None:
            self.left = before.left | {key: place.highest for key, place in before.topics.items()}
            self.known = {ident: copy_of(message) for ident, message in before.known.items()}
            again = [*before.waiting.values(), *before.unanswered]
            self.unanswered = [frame for frame in again if frame.WhichOneof("frame") in _LASTING]

    @property
    def is_open(self) -> bool:
        """The client may send."""
        return self.connection.state is ConnectionState.OPEN and not self.connection.reading_paused

    def send(self, frame: ClientFrame) -> None:
        """Send a frame if the connection allows it; a request without an id gets one."""
        if self.is_open:
            self.edge.core.client_frames.received(self.connection, self.payload(frame))

    def payload(self, frame: ClientFrame) -> bytes:
        """Encode a frame, and note it if it will be answered."""
        inner: Any = getattr(frame, frame.WhichOneof("frame") or "")
        if "id" in inner.DESCRIPTOR.fields_by_name:
            inner.id = inner.id or f"{self.edge.name}{self.connection.number}-{len(self.asked)}"
            self.asked[inner.id] = 0
            self.waiting[inner.id] = frame
        return frame.SerializeToString()

    def retry(self) -> None:
        """Send again the requests that the connection before did not answer."""
        while self.unanswered and self.is_open:
            self.send(self.unanswered.pop(0))

    def take_pending(self) -> bytes:
        """Take the data that the core has for the socket."""
        data = self.edge.core.take_pending(self.connection, buffered=0)
        assert data is not None, "closed as slow"
        return data

    def take(self) -> None:
        """Read everything written."""
        for each in parsed(self.take_pending()):
            frame = ServerFrame.FromString(bytes(each.data))
            kind = frame.WhichOneof("frame") or ""
            assert not self.closed_for, f"{kind} after closing"
            assert self.is_connected == (kind != "connected") or kind == "closing"
            self._receive(kind, getattr(frame, kind))

    def _receive(self, kind: str, frame: Any) -> None:
        if kind == "connected":
            self.is_connected = True
            for each in frame.positions:
                self._begin(topic_of(each.address), each.position.seq, frame.recovered)
        elif kind == "closing":
            self.closed_for = frame.reason
        elif kind == "message":
            self._message(frame)
        elif kind == "delta":
            self._delta(frame)
        elif kind == "change":
            self._change(frame)
        elif kind == "read":
            self._read(frame)
        elif kind == "signal":
            self._signal(frame)
        elif kind not in ("delivered", "reply_status") and (kind != "error" or frame.id):
            self._answer(kind, frame)

    def _read(self, read: ReadFrame) -> None:
        if read.HasField("at"):
            self._entry(topic_of(read.address), read.at.seq)

    def _signal(self, signal: SignalFrame) -> None:
        key = (signal.conversation.id, signal.user, signal.name)
        if signal.end:
            self.living.discard(key)
        else:
            self.living.add(key)

    def _answer(self, kind: str, frame: Any) -> None:
        if kind == "unsubscribed":
            self.living = {key for key in self.living if key[0] != frame.address.conversation.id}
        self.asked[frame.id] += 1
        assert self.asked[frame.id] == 1, f"{frame.id} is answered twice"
        request = self.waiting.pop(frame.id)
        if kind == "ack":
            self._ack(frame, request)
        elif kind == "subscribed":
            self._begin(topic_of(frame.address), frame.position.seq, frame.recovered)
        elif kind == "unsubscribed":
            key = topic_of(frame.address)
            self.left[key] = self.topics.pop(key).highest
        elif kind == "cancelled":
            for reply in frame.replies:
                stored = self.world.log.message("t", reply.message_id)
                assert stored is not None
                message = Message.FromString(stored)
                assert message.state in (reply.state, MESSAGE_STATE_RECALLED)
                assert reply.state != MESSAGE_STATE_OPEN
        elif kind == "error":
            self.world.errors[frame.code] += 1

    def _begin(self, key: TopicKey, seq: int, recovered: bool) -> None:
        known = self.topics.get(key)
        if known is None and not (recovered and self.left.get(key) == seq):
            for ident in [ident for ident, m in self.known.items() if topic_of(m.address) == key]:
                del self.known[ident]
        self.left.pop(key, None)
        if known is None or seq > known.highest:
            self.topics[key] = Place(seq)

    # Frames

    def _entry(self, key: TopicKey, seq: int) -> None:
        """Check an entry of a log: all before it came, except own messages still to be acknowledged."""
        place = self.topics[key]
        last = max(place.seen, default=place.start)
        assert seq > last, f"{seq} after {place.seen} from {place.start}"
        assert seq not in place.own, "its own entry again"
        for hole in set(range(last + 1, seq)) - place.own:
            message = self.world.log.entry(key, hole)
            assert message is not None, f"{seq} after {last}"
            assert message.author.user == self.user, f"{seq} after {last}"
            assert message.client_id in self.waiting, f"{seq} after {last}"
        place.seen.append(seq)

    def _message(self, message: Message) -> None:
        key, seq = topic_of(message.address), message.position.seq
        known = self.known.get(message.id)
        if message.state == MESSAGE_STATE_OPEN:
            assert known is None or known.state == MESSAGE_STATE_OPEN, f"{message.id} is open again"
            self._last = message.id
            self.next[message.id] = message.next_index
        if message.state != MESSAGE_STATE_OPEN or seq > self.topics[key].highest:
            self._entry(key, seq)
        self.known[message.id] = copy_of(message)

    def _delta(self, delta: DeltaFrame) -> None:
        if delta.message_id:
            self._last = delta.message_id
            assert delta.index == self.next[self._last], f"{self._last} is at {self.next[self._last]}"
        message = self.known[self._last]
        assert message.state == MESSAGE_STATE_OPEN, f"{self._last} has ended"
        assert topic_of(message.address) in self.topics, f"{self._last} is not heard"
        for token in text_added(delta).split():
            assert int(token.partition(".")[0]) == self.next[self._last], f"{token} of {self._last}"
            self.next[self._last] += 1
        _grow(message, delta)

    def _change(self, change: Change) -> None:
        self._entry(topic_of(change.address), change.position.seq)
        known = self.known.get(change.message_id)
        if change.kind == CHANGE_KIND_ENDED:
            assert known is not None or change.HasField("message"), f"the end of {change.message_id} alone"
            states = (MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED, change.state)
            assert known is None or known.state in states, f"{change.message_id} ended in another way"
            self.world.note_end(change.message_id, change.state, change.position.seq)
        if change.HasField("message"):
            assert change.kind != CHANGE_KIND_RECALLED
            self.known[change.message_id] = copy_of(change.message)
            return
        # Its own, of which the `ack` is still to come, may be unknown.
        known = self.known.setdefault(
            change.message_id, Message(id=change.message_id, address=change.address)
        )
        known.state = change.state
        if change.kind == CHANGE_KIND_RECALLED:
            del known.parts[:]

    def _ack(self, ack: AckFrame, request: ClientFrame) -> None:
        key = topic_of(ack.address)
        place = self.topics.get(key)
        if place is None or not ack.HasField("position"):
            return
        kind, seq = request.WhichOneof("frame"), ack.position.seq
        if kind == "message":
            own = Message(id=ack.message_id, address=ack.address, state=MESSAGE_STATE_COMPLETE)
            own.author.role, own.author.user = ROLE_USER, self.user
            own.parts.extend(request.message.parts)
            self.known.setdefault(ack.message_id, own)
        elif seq > place.start and seq not in place.seen and ack.message_id in self.known:
            assert seq > place.highest, "the ack of a change comes late"
            known = self.known[ack.message_id]
            del known.parts[:]
            if kind == "edit":
                known.parts.extend(request.edit.parts)
            else:
                known.state = MESSAGE_STATE_RECALLED
        place.own.add(seq)

    # State

    @property
    def positions(self) -> list[TopicPosition]:
        """Return the position to resume the home conversation from."""
        seq = self.topics[HOME].highest if HOME in self.topics else self.left.get(HOME)
        if seq is None:
            return []
        position = TopicPosition(address=group("home"))
        position.position.epoch, position.position.seq = self.world.log.epoch(HOME) if seq else "", seq
        return [position]

    def missing(self) -> dict[TopicKey, set[int]]:
        """Return, by topic, the entries that it should have received by now and has not."""
        gaps = {}
        for key, place in self.topics.items():
            due = set(range(place.start + 1, self.world.log.head(key).seq + 1))
            if gap := due - {*place.seen} - place.own:
                gaps[key] = gap
        return gaps

    def check(self) -> None:
        """Check that the client holds every message it should, in its current form."""
        assert self.is_connected
        assert self.missing() == {}
        assert set(self.asked.values()) <= {1}, self.asked
        for key, place in self.topics.items():
            for message in self.world.truth(key):
                known = self.known.get(message.id)
                if known is None:
                    assert message.position.seq <= place.start, f"{message.id} is not known"
                    assert message.state != MESSAGE_STATE_OPEN, f"{message.id} is not known"
                else:
                    got, truth = (known.state, [*known.parts]), (message.state, [*message.parts])
                    assert got == truth, f"{message.id}"


def text_added(delta: DeltaFrame) -> str:
    """Return the text that a delta adds, of whatever kind."""
    kind = delta.WhichOneof("content") or ""
    return str(delta.part.tool_call.arguments if kind == "part" else getattr(delta, kind))


def _grow(message: Message, delta: DeltaFrame) -> None:
    kind = delta.WhichOneof("content")
    last = message.parts[-1] if message.parts else Part()
    if kind == "part":
        if last.HasField("tool_call"):
            last.tool_call.arguments += delta.part.tool_call.arguments
        else:
            message.parts.add().CopyFrom(delta.part)
    elif kind == "text":
        (last if last.HasField("text") else message.parts.add()).text.text += delta.text
    else:
        (last if last.HasField("reasoning") else message.parts.add()).reasoning.text += delta.reasoning


def copy_of(message: Message) -> Message:
    """Return a copy that may be modified."""
    copy = Message()
    copy.CopyFrom(message)
    return copy
