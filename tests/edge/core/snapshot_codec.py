"""Codec of a dialect whose clients receive messages but no deltas or changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import Message
from trunkline_edge.dialects.codec import Codec, Decoded, DirectReply, Framing, StreamingMode, SwitchCodec

from tests.edge.core.core_harness import PROTO

#: Words that switch the codec, repeated as the answer; bytes after the colon are a frame for the new codec.
SO_FAR, WHOLE = b"so far:", b"whole:"
ASK, ANSWER = b"ask", b"answered"
#: What is answered with nothing.
SAY_NOTHING, IGNORED = b"say nothing", b"ignored"
#: Answered with whether it came as a binary message.
ASK_HOW = b"ask how"

#: Which other way of being shown messages a client asks for.
WAYS = {SO_FAR: StreamingMode.SNAPSHOTS, WHOLE: StreamingMode.COMPLETE}


@dataclass(frozen=True)
class Shown(Codec):
    """Frames in protobuf; kinds in `silent` are not sent."""

    streaming: StreamingMode = StreamingMode.SNAPSHOTS
    assigns_ids: bool = False
    reports_delivery: bool = False
    framing: Framing = Framing.BINARY
    silent: frozenset[str] = frozenset()
    beats: bytes = b""
    name = "shown"

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        for word, streaming in WAYS.items():
            if payload.startswith(word):
                rest = payload.removeprefix(word)
                return SwitchCodec(
                    replace(self, streaming=streaming), PROTO.decode(rest) if rest else DirectReply(word)
                )
        if payload in (ASK, SAY_NOTHING):
            return DirectReply(ANSWER if payload == ASK else b"")
        if payload == ASK_HOW:
            return DirectReply(b"binary" if binary else b"text")
        return None if payload == IGNORED else PROTO.decode(payload)

    def encode(self, frame: ServerFrame) -> bytes:
        return b"" if frame.WhichOneof("frame") in self.silent else frame.SerializeToString()

    def heartbeat(self) -> bytes:
        return self.beats


def text_of(message: Message) -> str:
    """Return the text of all parts, in order."""
    kinds = [part.WhichOneof("content") or "" for part in message.parts]
    says = {"text": "text", "reasoning": "text", "tool_call": "arguments"}
    return "".join(
        getattr(getattr(part, kind), says[kind]) for part, kind in zip(message.parts, kinds, strict=True)
    )
