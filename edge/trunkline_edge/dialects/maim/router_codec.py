"""The codec of maim_message's `Router` and `MessageClient` (0.2 to 0.7): bare `MessageBase` objects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, ErrorFrame, MessageFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    CustomPart,
    Message,
    Part,
    TextPart,
)
from trunkline_runtime.refusals import FIRST_FINAL_CLOSE_CODE

from trunkline_edge.dialects.codec import Codec, FrameRefused, StreamingMode
from trunkline_edge.dialects.dialect import Clock
from trunkline_edge.dialects.json_text import replace_lone_surrogates
from trunkline_edge.dialects.maim import messages as maim
from trunkline_edge.dialects.maim.api_codec import ENVELOPE, custom_value, has_content
from trunkline_edge.dialects.maim.api_ids import frame_id, msg_id_of

#: Clients before 0.4 close with 1009 on a larger frame, reconnect, and would receive it again.
MAX_FRAME_BYTES = 4 << 20

#: `message_type_name` of the custom messages that report errors. Clients without a handler for it log it.
ERROR_TYPE = "trunkline_error"

#: Precedes the digest in the ids of messages.
_DIGEST_MARK = "~"
#: A message_id that is longer in the contract's form is left out of the id.
_MAX_ID_CHARACTERS = 100

#: Errors of this codec and of the rate limiter. Others without an id answer frames that the edge sent for
#: the client.
_OWN_ERRORS = frozenset({catalogue.MALFORMED_FRAME.code, catalogue.RATE_LIMITED.code})

_write = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class MaimRouter(Codec):
    """The codec of clients of one tenant, agent and platform.

    The protocol has neither acknowledgements nor errors. Custom messages of type ERROR_TYPE report errors.
    """

    name = "maim.router"
    streaming = StreamingMode.COMPLETE
    #: For messages without a `message_id`.
    assigns_ids = True
    reports_delivery = True
    rejects_by_http = True

    clock: Clock = field(compare=False)
    tenant: str = ""
    agent: str = ""
    platform: str = ""

    # From the client

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame:
        """See Codec. Any object is a message."""
        if binary:
            raise FrameRefused(
                catalogue.MALFORMED_FRAME, "binary frames are not supported; send JSON as text"
            )
        payload = replace_lone_surrogates(payload)
        try:
            fields = maim.read_object(payload)
        except maim.TooManyValues as problem:
            raise _malformed(f"the JSON {problem}", problem.values) from None
        except ValueError as problem:
            raise _malformed(str(problem)) from None
        parts = maim.parts_of(maim.MESSAGE, payload, fields)
        if _is_custom(fields) and not parts[0].HasField("text"):
            content = bytes(fields.get("content", b"")).decode()
            parts.insert(0, Part(text=TextPart(text=content[: maim.MAX_TEXT_CHARACTERS])))
        return ClientFrame(message=MessageFrame(id=_ident(fields, payload), parts=parts))

    # To the client

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        match frame.WhichOneof("frame"):
            case "message":
                return self._push(frame.message)
            case "error" if frame.error.id or frame.error.code in _OWN_ERRORS:
                return self._error(frame.error)
            case "closing" if _is_news(frame.closing):
                return self._error(ErrorFrame(code=frame.closing.reason, message=frame.closing.message))
        return b""

    def _error(self, error: ErrorFrame) -> bytes:
        content = {"code": error.code, "message": error.message}
        message_id = _message_id(error.id)
        if message_id is not None:
            content["message_id"] = message_id
        return _write(self._custom(ERROR_TYPE, content, self.clock().timestamp()))

    def _custom(self, kind: str, content: Any, time: float) -> dict[str, Any]:
        return {
            "platform": self.platform,
            "message_type_name": kind,
            "content": content,
            "timestamp": time,
            "is_custom_message": True,
        }

    def _push(self, message: Message) -> bytes:
        """A message for the client. Messages of clients are not pushed, and empty ones have no use."""
        if message.author.role == ROLE_USER or message.state in (MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED):
            return b""
        if not has_content(message):
            return b""
        payload = self._payload(message)
        if len(payload) <= MAX_FRAME_BYTES:
            return payload
        return _write(self._standard(maim.left_out(message, self.tenant, len(payload), MAX_FRAME_BYTES)))

    def _payload(self, message: Message) -> bytes:
        only = message.parts[0].custom if len(message.parts) == 1 else CustomPart()
        if only.name.startswith("custom_"):
            kind = only.name.removeprefix("custom_")
            return _write(self._custom(kind, custom_value(only), maim.seconds(message.created_at)))
        fields = _object_in(message)
        if _is_custom(fields):
            return maim.stamped(fields, {})
        stamps = self._standard(message)
        return maim.stamped(fields, {name: value for name, value in stamps.items() if name not in fields})

    def _standard(self, message: Message) -> dict[str, Any]:
        """A message for `MessageBase.from_dict`."""
        message_id = maim.public_id(message.id, self.tenant)
        return {
            "message_info": maim.message_info(message, message_id, self.platform),
            "message_segment": maim.segment_of(message),
        }


def _is_news(closing: ClosingFrame) -> bool:
    """Whether a client needs the reason for its close; after most it just reconnects."""
    is_final = closing.code >= FIRST_FINAL_CLOSE_CODE
    return is_final or closing.reason == catalogue.FRAME_TOO_LARGE.code


def _malformed(problem: str, values: int = 0) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, problem, values=values)


def _is_custom(fields: maim.Fields) -> bool:
    """Whether the object is a custom message, as which clients handle it, too."""
    return bool(maim.value_of(fields, "is_custom_message"))


def _object_in(message: Message) -> maim.Fields:
    """The verbatim object that a message carries; empty if it carries none."""
    for name, fields in maim.objects_in(message, maim.MESSAGE, maim.BROADCAST, ENVELOPE):
        if name != ENVELOPE:
            return fields
        try:
            payload = maim.read_object(bytes(fields.get("payload", b"{}")))
        except ValueError:
            return {}
        return {key: payload[key] for key in ("message_info", "message_segment") if key in payload}
    return {}


# Ids


def _ident(fields: maim.Fields, payload: bytes) -> str:
    """The id of a client's message: its message_id, and a digest of everything in it; empty for none.

    Clients choose their own message_ids, and some always send the same one. So only the whole message, sent
    again, is a duplicate.
    """
    info = maim.value_of(fields, "message_info")
    message_id = info.get("message_id") if isinstance(info, dict) else None
    if isinstance(message_id, bool) or not isinstance(message_id, (str, int)) or message_id == "":
        return ""
    digest = hashlib.blake2b(payload, digest_size=12).hexdigest()
    ident = frame_id(message_id)
    return f"{ident if len(ident) <= _MAX_ID_CHARACTERS else ''}{_DIGEST_MARK}{digest}"


def _message_id(ident: str) -> Any:
    """The message_id in the id of a client's message; None if it has none."""
    return msg_id_of(ident.rpartition(_DIGEST_MARK)[0], ())
