"""The codec of maim_message's API server (`WebSocketServer` of 0.6.0 to 0.6.8)."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, DisconnectFrame, ErrorFrame, MessageFrame, ServerFrame
from trunkline.v1.message_pb2 import ROLE_USER, CustomPart, Message, Part, TextPart

from trunkline_edge.dialects.codec import (
    Codec,
    Decoded,
    DirectReply,
    FrameRefused,
    StreamingMode,
    SwitchCodec,
    too_many_values,
)
from trunkline_edge.dialects.dialect import Clock
from trunkline_edge.dialects.json_text import (
    MAX_FRAME_VALUES,
    count_above,
    decode_json,
    replace_lone_surrogates,
)
from trunkline_edge.dialects.maim import messages as maim
from trunkline_edge.dialects.maim.api_ids import (
    MAX_CHARACTERS,
    MsgId,
    frame_id,
    is_hashed,
    msg_id_of,
    unnamed,
)
from trunkline_edge.dialects.native.json_output import json_object

#: Name of the custom part that holds a whole envelope verbatim.
ENVELOPE = "maim.api"

#: Clients up to 0.6.7 close with 1009 on a larger frame, reconnect, and would receive it again.
MAX_FRAME_BYTES = 1 << 20

#: The contract's limit for a message, less an allowance for its other fields.
_MAX_PARTS_BYTES = (12 << 20) - 1024

#: Bound of the ids kept per connection: the default number of its requests in flight.
_MAX_LONG_IDS = 64

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class MaimApi(Codec):
    """The codec of clients of one tenant, agent and platform.

    Fields of a single connection do not count for equality: only frames for that connection use them.
    """

    name = "maim.api"
    streaming = StreamingMode.COMPLETE
    reports_delivery = True
    rejects_by_http = True

    clock: Clock = field(compare=False)
    tenant: str = ""
    agent: str = ""
    platform: str = ""
    #: The client's name for its connection, or one derived from the handshake. Not unique.
    uuid: str = field(default="", compare=False)
    #: The client's API key if it contains a token; removed from payloads, so that it is never stored.
    secret_key: str = field(default="", compare=False, repr=False)
    #: The latest msg_ids that cannot be restored from the ids of their messages, oldest first.
    long_ids: tuple[str, ...] = ()

    # From the client

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """See Codec. Ignores text that is not a JSON object; a binary message ends the connection."""
        if binary:
            return ClientFrame(disconnect=DisconnectFrame())
        payload = self._without_secret(replace_lone_surrogates(payload))
        try:
            envelope = maim.read_object(payload)
        except maim.TooManyValues as too_many:
            raise too_many_values(too_many.values) from None
        except ValueError:
            return None
        kind = maim.string_of(envelope, "type")
        if kind == "sys_ack":
            return None
        msg_id = maim.value_of(envelope, "msg_id")
        parts = _parts(kind, payload, envelope) if _is_msg_id(msg_id) else None
        if parts is None:
            return DirectReply(self._ack(envelope["msg_id"])) if msg_id else None
        if not msg_id:
            moment = f"{self.clock().timestamp()} {self.uuid} ".encode()
            return _message_frame(unnamed(moment + payload), parts)
        ident = frame_id(msg_id)
        frame = _message_frame(ident, parts)
        if not is_hashed(ident) or msg_id in self.long_ids:
            return frame
        if len(msg_id) > MAX_CHARACTERS:
            entry = catalogue.INVALID_ARGUMENT
            problem = f"must be at most {MAX_CHARACTERS} characters"
            raise FrameRefused(entry, entry.sentence(field="msg_id", problem=problem))
        return SwitchCodec(replace(self, long_ids=(*self.long_ids, msg_id)[-_MAX_LONG_IDS:]), frame)

    def _without_secret(self, payload: bytes) -> bytes:
        """Remove the API key, which clients put into each envelope as `sender_user` and often `api_key`."""
        if self.secret_key:
            for ascii_only in (True, False):
                written = json.dumps(self.secret_key, ensure_ascii=ascii_only).encode()
                payload = payload.replace(written, _encode(self._api_key))
        return payload

    # To the client

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec. Clients understand acknowledgements and messages only."""
        kind = frame.WhichOneof("frame")
        if kind == "ack":
            return self._ack_for(frame.ack.id)
        if kind == "error" and _is_repeated(frame.error):
            return self._ack_for(frame.error.id)
        if kind == "message" and frame.message.author.role != ROLE_USER and has_content(frame.message):
            return self._push(frame.message)
        return b""

    def _ack_for(self, ident: str) -> bytes:
        msg_id = msg_id_of(ident, self.long_ids)
        return b"" if msg_id is None else self._ack(msg_id)

    def _ack(self, msg_id: MsgId | msgspec.Raw) -> bytes:
        now = self.clock().timestamp()
        acked = _encode(msg_id)
        own = hashlib.blake2b(f"{now} {self.uuid} ".encode() + acked, digest_size=16).digest()
        return _encode(
            {
                "ver": 1,
                "msg_id": str(uuid.UUID(bytes=own, version=4)),
                "type": "sys_ack",
                "meta": {"uuid": self.uuid, "acked_msg_id": msgspec.Raw(acked), "timestamp": now},
                "payload": {"status": "received", "server_timestamp": now},
            }
        )

    def _push(self, message: Message) -> bytes:
        payload = _whole(message) or self._envelope(message, *self._content(message))
        if len(payload) <= MAX_FRAME_BYTES:
            return payload
        short = maim.left_out(message, self.tenant, len(payload), MAX_FRAME_BYTES)
        return self._envelope(short, "sys_std", self._standard(short))

    def _envelope(self, message: Message, kind: str, payload: Any) -> bytes:
        return _encode(
            {
                "ver": 1,
                "msg_id": _push_id(message),
                "type": kind,
                "meta": {
                    "sender_user": "server",
                    "target_user": self._api_key,
                    "platform": self.platform,
                    "timestamp": maim.seconds(message.created_at),
                },
                "payload": payload,
            }
        )

    def _content(self, message: Message) -> tuple[str, Any]:
        """The type of the envelope, and its payload."""
        only = message.parts[0].custom if len(message.parts) == 1 else CustomPart()
        if only.name.startswith("custom_"):
            return only.name, custom_value(only)
        return "sys_std", self._standard(message)

    def _standard(self, message: Message) -> dict[str, Any]:
        """A payload for `APIMessageBase.from_dict`, or that of a tenant-protocol object."""
        message_id = maim.public_id(message.id, self.tenant)
        payload: dict[str, Any] = {
            "message_info": maim.message_info(message, message_id, self.platform),
            "message_segment": maim.segment_of(message),
            "message_dim": {"api_key": self._api_key, "platform": self.platform},
        }
        carried = maim.carried(message)
        if carried is not None and _is_standard(fields := carried[1] | {"message_dim": _DIM}):
            payload |= {name: fields[name] for name in ("message_info", "message_segment")}
        return payload

    @property
    def _api_key(self) -> str:
        """The API key without its token."""
        return f"{self.tenant}:{self.agent}"


def _message_frame(ident: str, parts: list[Part]) -> ClientFrame:
    # The envelope still holds the parts that are dropped here.
    while len(parts) > 1 and sum(part.ByteSize() for part in parts) > _MAX_PARTS_BYTES:
        del parts[-2]
    return ClientFrame(message=MessageFrame(id=ident, parts=parts))


def _is_repeated(error: ErrorFrame) -> bool:
    """Whether the msg_id was used before with other content: it is acknowledged again, and dropped."""
    return error.code == catalogue.IDEMPOTENCY_MISMATCH.code


def _is_msg_id(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


# Envelopes from clients


def _parts(kind: str, payload: bytes, envelope: maim.Fields) -> list[Part] | None:
    """The parts for the agent in an envelope; None if it has none, or they cannot be read."""
    raw = envelope.get("payload", _NOTHING)
    if kind.startswith("custom_"):
        content = maim.value_of(envelope, "payload")
        return _as_text(content if isinstance(content, str) else bytes(raw).decode(), payload)
    if kind != "sys_std" or bytes(raw) == b"null":
        return None
    try:
        fields = maim.read_object(bytes(raw))
    except ValueError:
        fields = {}
    if "message_info" not in fields or "message_segment" not in fields:
        return _as_text(_in_python(maim.value_of(envelope, "payload")), payload)
    return maim.parts_of(ENVELOPE, payload, fields) if _is_standard(fields) else None


def _in_python(value: Any) -> str:
    """Any other payload, formatted by Python's `str` like the original server does."""
    try:
        return str({} if value is None else value)
    except (RecursionError, ValueError):
        return ""


def _as_text(text: str, payload: bytes) -> list[Part]:
    return [
        Part(text=TextPart(text=text[: maim.MAX_TEXT_CHARACTERS])),
        Part(custom=CustomPart(name=ENVELOPE, json=payload.decode())),
    ]


_VERSION, _STANDARD = msgspec.Raw(b"1"), msgspec.Raw(b'"sys_std"')
_NOTHING = msgspec.Raw(b"{}")
_DIM = msgspec.Raw(b'{"api_key":"","platform":""}')
_REQUIRED = {"message_info": ("platform", "message_id", "time"), "message_dim": ("api_key", "platform")}


def _is_standard(fields: maim.Fields) -> bool:
    """Whether the payload has every field that readers require."""
    for name, needed in _REQUIRED.items():
        value = maim.value_of(fields, name)
        if not isinstance(value, dict) or any(value.get(each) is None for each in needed):
            return False
    # Not decoded here: `parts_of` does that.
    return bytes(fields.get("message_segment", b"")).startswith(b"{")


# Envelopes to clients


def has_content(message: Message) -> bool:
    """Whether there is something to show: a reply that failed at once has only an error."""
    return bool(message.parts or message.error.message)


def _whole(message: Message) -> bytes:
    """The envelope that a message carries; empty if it carries none."""
    for _, fields in maim.objects_in(message, ENVELOPE):
        stamps = {} if maim.value_of(fields, "msg_id") else {"msg_id": _push_id(message)}
        return maim.stamped({"ver": _VERSION, "type": _STANDARD, **fields}, stamps)
    return b""


def custom_value(custom: CustomPart) -> Any:
    """The value of a custom part; invalid JSON, and with more values than a frame may have, stays text."""
    if not custom.HasField("json"):
        return json_object(custom.data)
    text = custom.json.encode()
    if count_above(text, MAX_FRAME_VALUES):
        return custom.json
    try:
        return decode_json(_decode, text)
    except (msgspec.MsgspecError, RecursionError):
        return custom.json


def _push_id(message: Message) -> str:
    """The msg_id of a pushed message: stable, so that clients can deduplicate; new after an edit."""
    if not message.HasField("updated_at"):
        return message.id
    return f"{message.id}_{message.updated_at.ToMilliseconds()}"
