"""Decoder for frames of streamed replies, in Trunkline's encodings and those of the baselines."""

from typing import NamedTuple

import msgspec
from trunkline.v1 import frame_pb2, message_pb2

from bench.loadgen.chat_frames import JSON, PROTO


class Frame(NamedTuple):
    """Decoded frame. `message_id` and `first`, the index of a delta, are None if the frame omits them."""

    kind: str
    """`open`, `delta`, `end`, `rejected`, or the name of another frame type."""
    text: str = ""
    is_whole: bool = False
    """The text replaces the text so far instead of extending it."""
    message_id: str | None = None
    first: int | None = None


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    parts: list[_Part] = []


class _JsonFrame(msgspec.Struct):
    type: str
    id: str = ""
    message_id: str | None = None
    index: int = 0
    text: str = ""
    parts: list[_Part] = []
    state: str = ""
    kind: str = ""
    message: _Message | str | None = None
    """Whole message in a `change`, text in an `error`."""


class _Chunk(msgspec.Struct):
    text: str
    is_final: bool


_decode_json = msgspec.json.Decoder(_JsonFrame).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


def chunk(text: str, is_final: bool = False) -> str:
    """Encode a baseline's frame."""
    return f'{{"text":"{text}","is_final":{"true" if is_final else "false"}}}'


def decode(payload: bytes, encoding: str) -> Frame:
    """Decode a frame; `encoding` is a subprotocol, or `delta` or `whole` for a baseline's chunk."""
    if encoding == JSON:
        return _from_json(_decode_json(payload))
    if encoding == PROTO:
        return _from_proto(frame_pb2.ServerFrame.FromString(payload))
    decoded = _decode_chunk(payload)
    if decoded.is_final:
        return Frame("end")
    return Frame("delta", decoded.text, is_whole=encoding == "whole")


def _from_json(frame: _JsonFrame) -> Frame:
    if frame.type == "delta":
        index = frame.index if frame.message_id is not None else None
        return Frame("delta", frame.text, message_id=frame.message_id, first=index)
    if frame.type == "message" and frame.state == "open":
        return Frame("open", _text(frame.parts), is_whole=True, message_id=frame.id)
    if frame.type == "change" and frame.kind == "ended" and frame.state == "complete":
        message = frame.message
        text = _text(message.parts) if isinstance(message, _Message) else ""
        return Frame("end", text, isinstance(message, _Message), frame.message_id)
    return Frame("rejected" if frame.type in ("error", "closing") else frame.type)


def _text(parts: list[_Part]) -> str:
    return "".join([part.text for part in parts])


def _from_proto(frame: frame_pb2.ServerFrame) -> Frame:
    kind = frame.WhichOneof("frame") or "unknown"
    if kind == "delta":
        delta = frame.delta
        if not delta.message_id:
            return Frame("delta", delta.text)
        return Frame("delta", delta.text, message_id=delta.message_id, first=delta.index)
    if kind == "message" and frame.message.state == message_pb2.MESSAGE_STATE_OPEN:
        return Frame("open", _proto_text(frame.message), is_whole=True, message_id=frame.message.id)
    if kind == "change":
        change = frame.change
        if (
            change.kind == message_pb2.CHANGE_KIND_ENDED
            and change.state == message_pb2.MESSAGE_STATE_COMPLETE
        ):
            return Frame("end", _proto_text(change.message), change.HasField("message"), change.message_id)
    return Frame("rejected" if kind in ("error", "closing") else kind)


def _proto_text(message: message_pb2.Message) -> str:
    return "".join([part.text.text for part in message.parts])
