"""The frames of LangBot's WebSocket chat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import (
    ClientFrame,
    ClosingFrame,
    ConnectedFrame,
    DisconnectFrame,
    PingFrame,
    ServerFrame,
)
from trunkline.v1.message_pb2 import ROLE_SYSTEM, Message

from trunkline_edge.dialects.codec import Codec, Decoded, FrameRefused, StreamingMode, SwitchCodec
from trunkline_edge.dialects.dialect import Clock
from trunkline_edge.dialects.langbot.chain import parts_of
from trunkline_edge.dialects.langbot.json_values import read_json, value_of
from trunkline_edge.dialects.langbot.records import BAD_SESSION_TYPE, iso, record_of

#: Names a part that holds what all clients of a pipeline are told, any JSON. Only a backend can say it.
BROADCAST = "langbot.broadcast"

#: What clients of LangBot are told in words that they know.
_WORDS = {
    catalogue.UNAUTHORIZED.code: "Unauthorized",
    # The only thing that is waited for is `authenticate`.
    catalogue.HANDSHAKE_TIMEOUT.code: "Unauthorized",
    catalogue.UNKNOWN_TENANT.code: "Pipeline not found",
    catalogue.INTERNAL.code: "Internal server error",
}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class LangBotCodec(Codec):
    """What is said to and by the clients of one session type.

    With `stream: false` a client asks for whole replies, from that message on, and is given a codec that
    differs in `replies` alone.
    """

    session_type: str
    clock: Clock
    replies: StreamingMode = StreamingMode.SO_FAR

    name = "langbot"
    gives_ids = True

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """See Codec. What is no frame of LangBot's says nothing."""
        fields = json_fields(payload)
        match fields.get("type", "message"):
            case "message":
                return self._said(fields)
            case "ping":
                return ClientFrame(ping=PingFrame())
            case "disconnect":
                return ClientFrame(disconnect=DisconnectFrame())
        return None

    def _said(self, fields: dict[str, Any]) -> Decoded:
        chain = fields.get("message", [])
        if not isinstance(chain, list):
            raise _malformed("message must be a list of components")
        frame = ClientFrame()
        frame.message.parts.extend(parts_of(chain))
        replies = StreamingMode.SO_FAR if fields.get("stream", True) else StreamingMode.WHOLE
        if replies is self.replies:
            return frame
        return SwitchCodec(dataclasses.replace(self, replies=replies), frame)

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        match frame.WhichOneof("frame"):
            case "message":
                told = self._message(frame.message)
            case "connected":
                told = self._connected(frame.connected)
            case "pong":
                told = {"type": "pong", "timestamp": iso(self.clock())}
            case "error":
                told = _error(frame.error.code, frame.error.message)
            case "closing" if frame.closing.reason != catalogue.DISCONNECTED.code:
                told = _error(frame.closing.reason, frame.closing.message)
            case _:
                told = None
        return _encode(told) if told is not None else b""

    def _connected(self, connected: ConnectedFrame) -> dict[str, Any]:
        return {
            "type": "connected",
            "connection_id": connected.connection_id,
            "pipeline_uuid": connected.address.agent,
            "session_type": self.session_type,
            "timestamp": iso(self.clock()),
        }

    def _message(self, message: Message) -> dict[str, Any] | None:
        if message.author.role == ROLE_SYSTEM:
            for part in message.parts:
                if part.custom.name == BROADCAST:
                    told = value_of(part.custom.json)
                    return {"type": "broadcast", "message": told, "timestamp": iso(message.created_at)}
        record = record_of(message)
        if record is None:
            return None
        kind = "user_message" if record["role"] == "user" else "response"
        return {"type": kind, "session_type": self.session_type, "data": record}

    def close_code(self, closing: ClosingFrame) -> int:
        """See Codec. LangBot knows none of Trunkline's own: 1013 for those who may come back, else 1000."""
        if closing.reason == catalogue.HANDSHAKE_TIMEOUT.code or closing.code >= 4500:
            return 1000
        return 1013 if closing.code >= 4000 else closing.code


def json_fields(payload: bytes) -> dict[str, Any]:
    """What a client's message says. Raises FrameRefused where that is no JSON object."""
    try:
        fields = read_json(payload)
    except ValueError:
        raise _malformed("Invalid JSON format") from None
    if not isinstance(fields, dict):
        raise _malformed("The message must be a JSON object")
    return fields


def _malformed(sentence: str) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, sentence)


def _error(code: str, sentence: str) -> dict[str, Any]:
    # In the words of LangBot, to the letter.
    words = BAD_SESSION_TYPE if sentence.endswith(BAD_SESSION_TYPE) else _WORDS.get(code, sentence)
    return {"type": "error", "message": words}
