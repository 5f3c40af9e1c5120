"""From a frame of the contract to the bytes that a client is written."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED, CHANGE_KIND_ENDED, MESSAGE_STATE_OPEN

from trunkline_edge.core.framing import framed
from trunkline_edge.dialects.codec import Codec, Framing, StreamingMode

# To look up a member of an Enum takes as long as all else that is done here.
_SHOWN_DELTAS, _SHOWN_WHOLE = StreamingMode.DELTAS, StreamingMode.COMPLETE
_SHOWN_BY_THE_MESSAGE = (CHANGE_KIND_ENDED, CHANGE_KIND_EDITED)
_BINARY, _NONE = Framing.BINARY, Framing.NONE


def encoded(codec: Codec, frame: ServerFrame) -> bytes:
    """The frame as all clients of this codec get it; empty where they are told nothing."""
    if codec.streaming is not _SHOWN_DELTAS:
        shown = _shown(codec, frame)
        if shown is None:
            return b""
        frame = shown
    return written(codec, codec.encode(frame))


def written(codec: Codec, payload: bytes) -> bytes:
    """A payload of this codec's as it is written; empty where there is none."""
    framing = codec.framing
    return framed(payload, framing is _BINARY) if payload and framing is not _NONE else payload


def _shown(codec: Codec, frame: ServerFrame) -> ServerFrame | None:
    """For those who are shown messages rather than what happens to them."""
    kind = frame.WhichOneof("frame")
    if kind == "message" and frame.message.state == MESSAGE_STATE_OPEN and codec.streaming is _SHOWN_WHOLE:
        return None
    if kind == "change":
        if frame.change.HasField("message"):
            return ServerFrame(message=frame.change.message)
        if frame.change.kind in _SHOWN_BY_THE_MESSAGE:
            # They were told the message as it has ended, or it is no longer kept.
            return None
    return frame
