"""The native protocol in protobuf: each binary WebSocket message is a ClientFrame or ServerFrame."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

from trunkline_edge.dialects.codec import Codec, FrameRefused, Framing
from trunkline_edge.dialects.native.depth_limit import PROBLEM, frame_too_deep


class NativeProto(Codec):
    """The codec `trunkline.v1.proto`."""

    name = "trunkline.v1.proto"
    rejects_unauthorized_by_http = True
    framing = Framing.BINARY

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec. Drops fields newer than this version of the contract."""
        try:
            frame = ClientFrame.FromString(payload)
        except DecodeError:
            raise _malformed("not a binary ClientFrame") from None
        if frame.WhichOneof("frame") is None:
            entry = catalogue.UNKNOWN_FRAME_TYPE
            unknown = UnknownFieldSet(frame)
            number = f"#{unknown[0].field_number}" if len(unknown) else "(none)"
            raise FrameRefused(entry, entry.sentence(type=number))
        # Unknown groups can be nested too, and would count in the link's batch.
        frame.DiscardUnknownFields()
        if frame_too_deep(frame):
            raise _malformed(PROBLEM)
        return frame

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        return frame.SerializeToString()


def _malformed(problem: str) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, catalogue.MALFORMED_FRAME.sentence(problem=problem))
