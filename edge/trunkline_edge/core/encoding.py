"""Encodes frames of the contract for clients of one codec."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_ENDED, MESSAGE_STATE_OPEN

from trunkline_edge.core.framing import count_websocket_frames, http_chunk, websocket_frame
from trunkline_edge.dialects.codec import Codec, Framing, StreamingMode

# A lookup of an Enum member takes as long as everything else here.
_DELTAS, _COMPLETE = StreamingMode.DELTAS, StreamingMode.COMPLETE
_TEXT, _BINARY = Framing.TEXT, Framing.BINARY
_CHUNKS, _PACKETS = Framing.CHUNKS, Framing.PACKETS
_REPORTED_BY_MESSAGE = (CHANGE_KIND_ENDED, CHANGE_KIND_EDITED)


def encode_frame(codec: Codec, frame: ServerFrame) -> bytes:
    """Return the frame as every client of this codec receives it; empty if the codec sends nothing."""
    if codec.streaming is not _DELTAS:
        translated = _without_streaming(codec, frame)
        if translated is None:
            return b""
        frame = translated
    return add_framing(codec, codec.encode(frame))


def add_framing(codec: Codec, payload: bytes) -> bytes:
    """Return a payload of this codec as it is written; empty if the payload is."""
    framing = codec.framing
    if not payload:
        return payload
    if framing is _TEXT or framing is _BINARY:
        return websocket_frame(payload, framing is _BINARY)
    return http_chunk(payload) if framing is _CHUNKS else payload


def count_frames(codec: Codec, data: bytes) -> int:
    """Count the frames in bytes that this codec encoded. Over HTTP, each is a server-sent event."""
    framing = codec.framing
    if framing is _TEXT or framing is _BINARY:
        return count_websocket_frames(data)
    return data.count(b"\x1e" if framing is _PACKETS else b"\n\n")


def _without_streaming(codec: Codec, frame: ServerFrame) -> ServerFrame | None:
    """Translate a frame for clients that receive messages and no deltas or changes; None for nothing."""
    kind = frame.WhichOneof("frame")
    if kind == "message" and frame.message.state == MESSAGE_STATE_OPEN and codec.streaming is _COMPLETE:
        return None
    if kind == "change":
        if frame.change.HasField("message"):
            return ServerFrame(message=frame.change.message)
        if frame.change.kind in _REPORTED_BY_MESSAGE:
            # The finished message was sent already, or is no longer kept.
            return None
    return frame
