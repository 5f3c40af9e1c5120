"""A client's knowledge, by the rules of the protocol; a frame that breaks them is an AssertionError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trunkline.v1.access_pb2 import Grants
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, DeltaFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    Change,
    Message,
    MessageState,
    Part,
)
from trunkline_router.core.values.topics import Position, TopicKey, position_of, topic_of

if TYPE_CHECKING:
    from tests.router.core.harness.edge import Edge

OPEN = MessageState.MESSAGE_STATE_OPEN
RECALLED = MessageState.MESSAGE_STATE_RECALLED

#: Requests with an id, and the frames that answer them.
REQUESTS = ("message", "subscribe", "unsubscribe", "history", "cancel", "edit", "recall")
ANSWERS = ("ack", "error", "subscribed", "unsubscribed", "history", "cancelled")


class Client:
    """One client. `place` is its position in each topic, its own entries included; `known` are the messages
    that it has received, in their present form.

    Every frame is checked: its topic is subscribed, and it follows the previous entry without a gap or a
    repeat. Only an open message is sent again; it replaces what is known, and its deltas continue exactly
    where it ends.
    """

    def __init__(self, edge: Edge, number: int, home: TopicKey, user: str) -> None:
        self.edge = edge
        self.number = number
        self.id = f"{edge.name}-c{number}"
        self.home = home
        self.user = user
        self.state = "opening"
        self.frames: list[ServerFrame] = []
        self.unanswered: dict[str, ClientFrame] = {}
        self.place: dict[TopicKey, Position] = {}
        self.resume: dict[TopicKey, Position] = {}
        self.resumes_delivered = False
        #: It receives its own messages, which advance its position.
        self.echo = False
        #: Time of opening in seconds, if the client sets `supersedes`; None otherwise.
        self.supersedes_at: int | None = None
        #: User of its token.
        self.holder = ""
        #: Grants of its token; None without one.
        self.grants: Grants | None = None
        self.remote_ip = "127.0.0.1"
        self.known: dict[str, Message] = {}
        self.close_reason = ""

    @property
    def texts(self) -> list[str]:
        """Texts of the messages that it received."""
        return [text_of(f.message) for f in self.frames if f.HasField("message")]

    def text(self, message_id: str) -> str:
        """Return the text of a message as far as it is known."""
        return text_of(self.known[message_id])

    def kinds(self) -> list[str]:
        """Return the kinds of the frames that it received, in order."""
        return [str(frame.WhichOneof("frame")) for frame in self.frames]

    def last(self, kind: str) -> Any:
        """Return the last frame of a kind."""
        return [getattr(frame, kind) for frame in self.frames if frame.WhichOneof("frame") == kind][-1]

    # Received frames

    def got(self, frame: ServerFrame, deltas: int = 0) -> None:
        """A frame arrived; a delta frame holds `deltas` merged deltas."""
        kind = str(frame.WhichOneof("frame"))
        self.frames.append(frame)
        if kind == "connected":
            self._connected(frame)
        elif kind == "subscribed":
            self.place[topic_of(frame.subscribed.address)] = position_of(frame.subscribed.position)
        elif kind == "unsubscribed":
            key = topic_of(frame.unsubscribed.address)
            self.place.pop(key, None)
            self.known = {k: m for k, m in self.known.items() if topic_of(m.address) != key}
        elif kind == "ack":
            self._acked(frame.ack)
        elif kind == "message":
            self._message(frame.message)
        elif kind == "delta":
            self._delta(frame.delta, deltas)
        elif kind == "change":
            self._change(frame.change)
        elif kind == "read" and frame.read.HasField("at"):
            self._entry(topic_of(frame.read.address), position_of(frame.read.at))
        if kind in ANSWERS:
            self.unanswered.pop(getattr(frame, kind).id, None)

    def _connected(self, frame: ServerFrame) -> None:
        assert self.state == "opening"
        self.state = "open"
        for entry in frame.connected.positions:
            self.place[topic_of(entry.address)] = position_of(entry.position)
        if not frame.connected.recovered:
            self.known.clear()

    def _acked(self, ack: AckFrame) -> None:
        if self.echo:
            return
        position, key = position_of(ack.position), topic_of(ack.address)
        place = self.place.get(key)
        # The ack of a retry may name a log that was erased since; that of a repeated recall has no position.
        if position.seq and (place is None or place.epoch == position.epoch or position.seq == 1):
            if key in self.place and self._is_new(key, position):
                self._changed_itself(ack)
            self.came_to(position, key)

    def _changed_itself(self, ack: AckFrame) -> None:
        """Apply a change of its own, of which it receives only the `ack`."""
        request = self.unanswered.get(ack.id)
        known = self.known.get(ack.message_id)
        if request is None or known is None or request.HasField("message"):
            return
        del known.parts[:]
        if request.HasField("edit"):
            known.parts.extend(request.edit.parts)
        else:
            known.state = RECALLED

    def _entry(self, key: TopicKey, position: Position) -> None:
        assert self.state == "open", "a frame came before connected"
        assert key in self.place, f"{self.id} does not hear {key}"
        assert self._is_new(key, position), f"{self.id} at {self.place[key]} got {position} again"
        self.came_to(position, key)

    def _message(self, message: Message) -> None:
        assert self.state == "open", "a frame came before connected"
        if not message.HasField("position"):
            return
        key, position = topic_of(message.address), position_of(message.position)
        assert key in self.place, f"{self.id} does not hear {key}"
        if message.state != OPEN or self._is_new(key, position):
            self._entry(key, position)
        else:
            known = self.known.get(message.id)
            assert known is None or known.state == OPEN, f"{message.id} is open again"
        self.known[message.id] = copy_of(message)

    def _delta(self, delta: DeltaFrame, count: int) -> None:
        known = self.known.get(delta.message_id)
        assert known is not None, f"{self.id} got an addition to {delta.message_id}, which it does not know"
        assert known.state == OPEN, f"{self.id} got an addition to {delta.message_id}, which has ended"
        assert delta.index == known.next_index, f"{delta.index} of {delta.message_id} at {known.next_index}"
        grow(known, delta)
        known.next_index += count

    def _change(self, change: Change) -> None:
        self._entry(topic_of(change.address), position_of(change.position))
        known = self.known.get(change.message_id)
        if change.kind == CHANGE_KIND_ENDED:
            assert known is not None or change.HasField("message"), f"the end of {change.message_id} alone"
            # A message that was missed comes in its present form, and its changes after it.
            states = (OPEN, change.state, RECALLED)
            assert known is None or known.state in states, f"{change.message_id} ended in another way"
        if change.HasField("message"):
            assert change.kind != CHANGE_KIND_RECALLED
            self.known[change.message_id] = copy_of(change.message)
        elif known is not None:
            known.state = change.state
            if change.kind == CHANGE_KIND_RECALLED:
                del known.parts[:]

    def came_to(self, position: Position, key: TopicKey) -> None:
        """Advance to an entry that it received, or published itself; the entry may be an earlier one."""
        if key in self.place and self._is_new(key, position):
            place = self.place[key]
            # A new epoch begins at 1 after a reset, and continues if the log has lost entries.
            following = {place.seq + 1} if place.epoch == position.epoch else {1, place.seq + 1}
            assert position.seq in following, f"{self.id} at {place} of {key} came to {position}"
            self.place[key] = position

    def _is_new(self, key: TopicKey, position: Position) -> bool:
        """Return whether a position is beyond the client's; epochs of a MemoryLog are numbered."""
        place = self.place[key]
        if place.epoch == position.epoch:
            return position.seq > place.seq
        return int(position.epoch[1:]) > int(place.epoch[1:] or 0)


def grow(message: Message, delta: DeltaFrame) -> None:
    """Append a delta to a message as the comments on Delta specify, in the simplest way."""
    kind = str(delta.WhichOneof("content"))
    last = message.parts[-1] if message.parts else Part()
    if kind == "part":
        call = delta.part.tool_call
        if (
            delta.part.HasField("tool_call")
            and last.HasField("tool_call")
            and last.tool_call.call_id == call.call_id
        ):
            last.tool_call.arguments += call.arguments
        else:
            message.parts.add().CopyFrom(delta.part)
        return
    part = last if last.HasField(kind) else message.parts.add()  # type: ignore[arg-type]
    grown = part.text if kind == "text" else part.reasoning
    grown.text += delta.text if kind == "text" else delta.reasoning
    grown.SetInParent()


def text_of(message: Message) -> str:
    """Return all text of a message."""
    return "".join(part.text.text for part in message.parts)


def copy_of(message: Message) -> Message:
    """Return a copy of a message."""
    copy = Message()
    copy.CopyFrom(message)
    return copy
