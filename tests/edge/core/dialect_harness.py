"""Plays clients of dialects for an EdgeCore, and describes their frames in short words."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame, PingFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_OPEN,
)
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_edge.dialects.codec import Codec

from tests.edge.core.core_harness import (
    connected,
    deliver,
    join,
    opened,
    parsed,
    topic,
)
from tests.edge.core.snapshot_codec import ANSWER, SO_FAR, WHOLE, text_of

MESSAGE = ClientFrame(message=MessageFrame()).SerializeToString()
PING = ClientFrame(ping=PingFrame(id="p")).SerializeToString()


def shown(connection: Connection) -> list[str]:
    """Take a connection's pending frames; messages as their text and whether they are open."""
    data, connection.pending = b"".join(connection.pending), []
    return [_shown(bytes(each.data)) for each in parsed(data)]


def _shown(payload: bytes) -> str:
    assert payload, "an empty frame"
    if payload in (ANSWER, SO_FAR, WHOLE, b"text", b"binary"):
        return payload.decode()
    frame = ServerFrame.FromString(payload)
    kind = frame.WhichOneof("frame") or "?"
    if kind == "change":
        assert not frame.change.HasField("message")
        return f"change {frame.change.kind}"
    if kind != "message":
        return kind
    is_open = frame.message.state == MESSAGE_STATE_OPEN
    return f"{text_of(frame.message)}{'...' if is_open else ''}"


def texts(core: EdgeCore) -> StreamSnapshots | None:
    """Return the snapshots of the only topic."""
    [known] = core.fanout._topics.values()
    return known.snapshots


def dialect(core: EdgeCore, codec: Codec, rollup_ms: int = 0) -> Connection:
    """Open a connection of a dialect in `team`, with nothing pending."""
    client = opened(core, codec, rollup_ms=rollup_ms)
    if not core.fanout._topics:
        deliver(core, topic(1, "team"))
    deliver(core, connected(client), join(client, 1))
    client.pending.clear()
    core.dirty.clear()
    return client
