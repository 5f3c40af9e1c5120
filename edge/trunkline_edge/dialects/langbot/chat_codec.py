"""The codec of LangBot's WebSocket chat."""

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

from trunkline_edge.dialects.codec import (
    Codec,
    Decoded,
    FrameRefused,
    StreamingMode,
    SwitchCodec,
    UsesUploads,
    too_many_values,
)
from trunkline_edge.dialects.dialect import Clock
from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above
from trunkline_edge.dialects.langbot.chain import parts_of
from trunkline_edge.dialects.langbot.json_values import read_json, value_of
from trunkline_edge.dialects.langbot.records import CONNECT_PROBLEMS, iso, record_of
from trunkline_edge.dialects.langbot.upload_keys import references_in

#: Name of the custom part of a broadcast to a pipeline's clients, any JSON. Only backends can send one.
BROADCAST = "langbot.broadcast"

#: Error texts that LangBot's clients know, by the catalogue's code.
_ERROR_TEXTS = {
    catalogue.UNAUTHORIZED.code: "Unauthorized",
    # The handshake waits for `authenticate` only.
    catalogue.HANDSHAKE_TIMEOUT.code: "Unauthorized",
    catalogue.UNKNOWN_TENANT.code: "Pipeline not found",
    catalogue.INTERNAL.code: "Internal server error",
}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class LangBotCodec(Codec):
    """The codec of clients of one session type.

    A message with `stream: false` requests complete replies from then on; the client gets a codec that
    differs in `streaming` only.
    """

    session_type: str
    clock: Clock
    streaming: StreamingMode = StreamingMode.SNAPSHOTS
    #: The field of `connected` that names the agent.
    agent_field: str = "pipeline_uuid"

    name = "langbot"
    assigns_ids = True

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """See Codec. Ignores frames that LangBot does not have."""
        fields = json_fields(payload)
        match fields.get("type", "message"):
            case "message":
                return self._message_frame(fields)
            case "ping":
                return ClientFrame(ping=PingFrame())
            case "disconnect":
                return ClientFrame(disconnect=DisconnectFrame())
        return None

    def _message_frame(self, fields: dict[str, Any]) -> Decoded:
        chain = fields.get("message", [])
        if not isinstance(chain, list):
            raise _malformed("message must be a list of components")
        frame = ClientFrame()
        frame.message.parts.extend(parts_of(chain))
        references = references_in(frame.message.parts) if _names_a_path(chain) else ()
        decoded = UsesUploads(frame, references) if references else frame
        streaming = StreamingMode.SNAPSHOTS if fields.get("stream", True) else StreamingMode.COMPLETE
        if streaming is self.streaming:
            return decoded
        return SwitchCodec(dataclasses.replace(self, streaming=streaming), decoded)

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        match frame.WhichOneof("frame"):
            case "message":
                fields = self._message(frame.message)
            case "connected":
                fields = self._connected(frame.connected)
            case "pong":
                fields = {"type": "pong", "timestamp": iso(self.clock())}
            case "error":
                fields = _error(frame.error.code, frame.error.message)
            case "closing" if frame.closing.reason != catalogue.DISCONNECTED.code:
                fields = _error(frame.closing.reason, frame.closing.message)
            case _:
                fields = None
        return _encode(fields) if fields is not None else b""

    def _connected(self, connected: ConnectedFrame) -> dict[str, Any]:
        return {
            "type": "connected",
            "connection_id": connected.connection_id,
            self.agent_field: connected.address.agent,
            "session_type": self.session_type,
            "timestamp": iso(self.clock()),
        }

    def _message(self, message: Message) -> dict[str, Any] | None:
        if message.author.role == ROLE_SYSTEM:
            for part in message.parts:
                if part.custom.name == BROADCAST:
                    content = value_of(part.custom.json)
                    return {"type": "broadcast", "message": content, "timestamp": iso(message.created_at)}
        record = record_of(message)
        if record is None:
            return None
        kind = "user_message" if record["role"] == "user" else "response"
        return {"type": kind, "session_type": self.session_type, "data": record}

    def close_code(self, closing: ClosingFrame) -> int:
        """See Codec. LangBot has no codes above 4000: 1013 if the client may reconnect, else 1000."""
        if closing.reason == catalogue.HANDSHAKE_TIMEOUT.code or closing.code >= 4500:
            return 1000
        return 1013 if closing.code >= 4000 else closing.code


def json_fields(payload: bytes) -> dict[str, Any]:
    """A client's message as a JSON object. Raises FrameRefused for anything else, and for too many values."""
    if values := count_above(payload, MAX_FRAME_VALUES):
        raise too_many_values(values)
    try:
        fields = read_json(payload)
    except ValueError:
        raise _malformed("Invalid JSON format") from None
    if not isinstance(fields, dict):
        raise _malformed("The message must be a JSON object")
    return fields


def _names_a_path(chain: list[Any]) -> bool:
    return any(isinstance(component, dict) and component.get("path") for component in chain)


def _malformed(sentence: str) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, sentence)


def _error(code: str, sentence: str) -> dict[str, Any]:
    # The texts of LangBot itself, to the letter.
    own = next((each for each in CONNECT_PROBLEMS if sentence.endswith(each)), "")
    text = own or _ERROR_TEXTS.get(code, sentence)
    return {"type": "error", "message": text}
