"""Plays clients, sockets and router for an EdgeCore, and describes its output in short words."""

from __future__ import annotations

import json
from collections.abc import Iterable

from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, Address, Conversation
from trunkline.v1.edge_service_pb2 import ConnectionOpened, EdgeEntry, LinkRequest, LinkResponse, RouterEntry
from trunkline.v1.frame_pb2 import ClosingFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    ChangeKind,
    Message,
    Part,
)
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import Close, PauseReading, Ping, ResumeReading
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.core.uplink import Uplink
from trunkline_edge.dialects.codec import Codec, Decoded, Framing
from trunkline_edge.dialects.native.handshake import CODECS
from websockets.frames import Frame
from websockets.streams import StreamReader

JSON = CODECS["trunkline.v1.json"]
PROTO = CODECS["trunkline.v1.proto"]


def group(name: str) -> Address:
    """Return the address of a group."""
    conversation = Conversation(kind=CONVERSATION_KIND_GROUP, id=name)
    return Address(tenant="t", agent="a", platform="web", conversation=conversation)


# Entries from the router


def topic(number: int, name: str, seq: int = 0) -> RouterEntry:
    """Return the entry that numbers a topic."""
    entry = RouterEntry()
    entry.topic.topic = number
    entry.topic.address.CopyFrom(group(name))
    entry.topic.position.epoch, entry.topic.position.seq = "e", seq
    return entry


def join(connection: Connection, *topics: int) -> RouterEntry:
    """Return the entry that subscribes a connection to topics."""
    entry = RouterEntry()
    entry.join.connection = connection.number
    entry.join.topics.extend(topics)
    return entry


def leave(connection: Connection, *topics: int) -> RouterEntry:
    """Return the entry that unsubscribes a connection from topics."""
    entry = RouterEntry()
    entry.leave.connection = connection.number
    entry.leave.topics.extend(topics)
    return entry


def message(name: str, seq: int, text: str = "", client_id: str = "", user: str = "") -> Message:
    """Return a message in a group."""
    posted = Message(address=group(name), client_id=client_id)
    posted.parts.append(Part())
    posted.parts[0].text.text = text or f"text {seq}"
    posted.author.user = user
    posted.position.epoch, posted.position.seq = "e", seq
    return posted


def publish(
    number: int, posted: Message, but: Connection | None = None, replayed: bool = False
) -> RouterEntry:
    """Return the entry that publishes a message to a topic's subscribers."""
    entry = RouterEntry()
    entry.publish.topic = number
    entry.publish.frame.message.CopyFrom(posted)
    entry.publish.replayed = replayed
    if but is not None:
        setattr(entry.publish, "except", but.number)
    return entry


def open_message(name: str, ident: str = "r", text: str = "", next_index: int = 0, seq: int = 1) -> Message:
    """Return an open message, new or as a snapshot."""
    posted = message(name, seq, text or "so far")
    posted.id, posted.state, posted.next_index = ident, MESSAGE_STATE_OPEN, next_index
    return posted


def delta(number: int, index: int, text: str = "", ident: str = "r", count: int = 0) -> RouterEntry:
    """Return the entry that publishes a delta, or `count` joined ones."""
    entry = RouterEntry()
    entry.publish.topic, entry.publish.deltas = number, count
    added = entry.publish.frame.delta
    added.message_id, added.index = ident, index
    added.text = text or f"{index} "
    return entry


def ended(number: int, ident: str = "r", seq: int = 2, kind: ChangeKind = CHANGE_KIND_ENDED) -> RouterEntry:
    """Return the entry that ends an open message."""
    entry = RouterEntry()
    entry.publish.topic = number
    change = entry.publish.frame.change
    change.message_id, change.kind, change.state = ident, kind, MESSAGE_STATE_COMPLETE
    change.position.epoch, change.position.seq = "e", seq
    return entry


def send(connection: Connection, frame: ServerFrame | None = None) -> RouterEntry:
    """Return an entry with a frame for one connection, for the caller to fill in."""
    entry = RouterEntry()
    entry.send.connection = connection.number
    entry.send.frame.CopyFrom(frame or ServerFrame())
    return entry


def connected(connection: Connection) -> RouterEntry:
    """Return the entry that accepts a connection."""
    entry = send(connection)
    entry.send.frame.connected.connection_id = f"c{connection.number}"
    return entry


def ack(connection: Connection, ident: str) -> RouterEntry:
    """Return the entry that acknowledges a request."""
    entry = send(connection)
    entry.send.frame.ack.id = ident
    return entry


def close(connection: Connection, code: int = 4501, reason: str = "CLOSED_BY_BACKEND") -> RouterEntry:
    """Return the entry that closes a connection."""
    entry = RouterEntry()
    entry.close.connection = connection.number
    entry.close.closing.code, entry.close.closing.reason = code, reason
    return entry


def batch(*entries: RouterEntry, credit: int = 0) -> LinkResponse:
    """Return a batch from the router."""
    return LinkResponse(entries=entries, credit=credit)


# Frames from clients


def say(ident: str, text: str = "hello") -> bytes:
    """Return a `message` frame for the home conversation."""
    return json.dumps({"type": "message", "id": ident, "parts": [{"type": "text", "text": text}]}).encode()


def signal(name: str = "typing") -> bytes:
    """Return a frame that is never answered."""
    return json.dumps({"type": "signal", "name": name}).encode()


# Output


def parsed(data: bytes) -> list[Frame]:
    """Parse WebSocket frames with the websockets library."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while not _result(reader.at_eof()):
        frames.append(_result(Frame.parse(reader.read_exact, mask=False, max_size=None)))
    return frames


def _result(generator: object) -> object:
    try:
        next(generator)  # type: ignore[call-overload]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the bytes end within a frame")


def heard(connection: Connection) -> list[str]:
    """Take a connection's pending frames, each described by its type and what distinguishes it."""
    data, connection.pending = b"".join(connection.pending), []
    return [describe(frame.data, connection.codec) for frame in parsed(data)]


def describe(payload: bytes, codec: Codec) -> str:
    """Describe a frame to a client in short words."""
    if codec.framing is Framing.BINARY:
        frame = ServerFrame.FromString(payload)
        kind = frame.WhichOneof("frame") or "?"
        if kind == "delta":
            return _delta(frame.delta.message_id, frame.delta.index, frame.delta.text)
        return f"message {frame.message.position.seq}" if kind == "message" else kind
    fields = json.loads(payload)
    kind = fields["type"]
    if kind == "delta":
        return _delta(fields.get("message_id", ""), fields.get("index", 0), fields.get("text", ""))
    detail = {
        "message": fields.get("position", {}).get("seq"),
        "error": fields.get("code"),
        "closing": fields.get("reason"),
        "change": fields.get("kind"),
    }.get(kind, fields.get("id"))
    return kind if detail is None else f"{kind} {detail}"


def _delta(ident: str, index: int, text: str) -> str:
    return f"{ident}@{index}+{text}" if ident else f"+{text}"


def taken(uplink: Uplink) -> list[LinkRequest]:
    """Take every batch of the uplink, whatever credit that needs."""
    batches = []
    uplink.credit += 1000
    while (one := uplink.take()) is not None:
        batches.append(one)
    return batches


def forwarded(core: EdgeCore) -> list[str]:
    """Take the entries for the router, each described in short words."""
    return [_entry(entry) for one in taken(core.uplink) for entry in one.entries]


def _entry(entry: EdgeEntry) -> str:
    kind = entry.WhichOneof("entry")
    if kind == "opened":
        groups = "".join(f" +{one.id}" for one in entry.opened.groups)
        return f"opened {entry.opened.connection}{' restored' if entry.opened.restored else ''}{groups}"
    if kind == "frame":
        frame = entry.frame.frame
        inner = getattr(frame, frame.WhichOneof("frame") or "")
        return f"frame {entry.frame.connection} {getattr(inner, 'id', '') or frame.WhichOneof('frame')}"
    if kind == "topic":
        return f"topic {entry.topic.address.conversation.id}@{entry.topic.position.seq}"
    return f"closed {entry.closed.connection}"


class Counting(Codec):
    """A codec that counts what it encodes."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.name, self.framing = codec.name, codec.framing
        self.encoded = 0

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        return self._codec.decode(payload, binary)

    def encode(self, frame: ServerFrame) -> bytes:
        self.encoded += 1
        return self._codec.encode(frame)


# Effects


def paused(core: EdgeCore) -> set[Connection]:
    """Connections that effects not carried out yet pause in the end."""
    return {connection for connection, is_paused in _reading(core).items() if is_paused}


def resumed(core: EdgeCore) -> set[Connection]:
    """Connections that effects not carried out yet resume in the end."""
    return {connection for connection, is_paused in _reading(core).items() if not is_paused}


def _reading(core: EdgeCore) -> dict[Connection, bool]:
    changes = [one for one in core.effects if isinstance(one, PauseReading | ResumeReading)]
    return {one.connection: isinstance(one, PauseReading) for one in changes}


def closings(core: EdgeCore, connection: Connection) -> list[ClosingFrame]:
    """Frames that the connection is closed with."""
    return [one.closing for one in core.effects if isinstance(one, Close) and one.connection is connection]


def pinged(core: EdgeCore) -> list[Connection]:
    """Connections to ping; they are taken out of the effects."""
    pings = [one for one in core.effects if isinstance(one, Ping)]
    core.effects[:] = [one for one in core.effects if not isinstance(one, Ping)]
    return [one.connection for one in pings]


# Ready-made beginnings


def linked_core(**limits: int) -> EdgeCore:
    """Return a core with a link."""
    core = EdgeCore(EdgeLimits(**limits))
    core.linked()
    return core


def opened(
    core: EdgeCore, codec: Codec = JSON, user: str = "", home: str = "team", rollup_ms: int = 0
) -> Connection:
    """Open a connection that the router has not answered."""
    wish = ConnectionOpened(address=group(home), user=user)
    return core.sessions.open(codec, wish, rollup_ms)


def deliver(core: EdgeCore, *entries: RouterEntry, now: float = 0) -> None:
    """Deliver a batch from the router."""
    core.link_received(batch(*entries), now)


def open_all(
    core: EdgeCore, names: Iterable[str] = "ab", codec: Codec = JSON, rollup_ms: int = 0
) -> list[Connection]:
    """Open connections subscribed to topic 1, the group `team`, with nothing pending."""
    connections = [opened(core, codec, name, rollup_ms=rollup_ms) for name in names]
    deliver(core, topic(1, "team"))
    for connection in connections:
        deliver(core, connected(connection), join(connection, 1))
        connection.pending.clear()
    core.dirty.clear()
    core.effects.clear()
    forwarded(core)
    return connections


def streaming(core: EdgeCore, names: str = "a", rollup_ms: int = 40) -> list[Connection]:
    """Open connections that have received the open message `r` of topic 1."""
    listeners = open_all(core, names, rollup_ms=rollup_ms)
    deliver(core, publish(1, open_message("team")))
    for one in listeners:
        assert heard(one) == ["message 1"]
    return listeners


def tables(core: EdgeCore) -> list[object]:
    """Return everything that waits for a window to end."""
    rollup = core.fanout.rollup
    return [*rollup._fresh, *rollup._due]
