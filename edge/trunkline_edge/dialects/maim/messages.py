"""Translation between maim_message's JSON objects and the contract's messages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, Conversation
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.message_pb2 import ROLE_AGENT, CustomPart, MediaPart, Message, Part, TextPart

from trunkline_edge.dialects.json_text import MAX_FRAME_VALUES, count_above

#: Name of the custom part that holds the object of a client or backend verbatim.
MESSAGE = "maim.message"
#: The same for a broadcast to a platform.
BROADCAST = "maim.broadcast"
#: The same for a client's report that it could not handle a message.
RESULT = "maim.message_result"

#: A JSON object with undecoded values.
Fields = dict[str, msgspec.Raw]

#: The contract's limit of one text part.
MAX_TEXT_CHARACTERS = 262_144
#: Larger media stay in the custom part only, because a copy would double the message.
MAX_MEDIA_BYTES = 256 * 1024
MAX_MEDIA = 16

_URL_MAX_CHARACTERS = 4096
_TYPE_MAX_CHARACTERS = 256

_read_object = msgspec.json.Decoder(Fields).decode
_read = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder().encode

#: The kind of media part by type of segment.
_MEDIA = {"image": "image", "emoji": "image", "voice": "audio", "video": "video", "file": "file"}
#: The type of segment by kind of media part.
_SEGMENTS = {"image": "image", "audio": "voice", "video": "video", "file": "file"}


class NotAnObject(ValueError):
    """The text is valid JSON but not an object."""


class TooManyValues(ValueError):
    """The text has more values than a frame may; `values` is their number."""

    def __init__(self, values: int) -> None:
        super().__init__(f"has {values} values; at most {MAX_FRAME_VALUES} are allowed")
        self.values = values


def read_object(payload: bytes) -> Fields:
    """Decode a JSON object.

    Raises TooManyValues, NotAnObject, or ValueError if the bytes are not JSON. Values are decoded later, so
    lone surrogates must have been replaced.
    """
    if values := count_above(payload, MAX_FRAME_VALUES):
        raise TooManyValues(values)
    try:
        # Values that stay undecoded are not checked for UTF-8 otherwise.
        payload.decode()
        return _read_object(payload)
    except msgspec.ValidationError:
        raise NotAnObject("a JSON object is expected") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("Invalid JSON format") from None


def value_of(fields: Fields, name: str) -> Any:
    """A field's decoded value; None if absent or malformed."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _read(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def string_of(fields: Fields, name: str) -> str:
    """A string field; empty if absent or not a string."""
    value = value_of(fields, name)
    return value if isinstance(value, str) else ""


def stamped(fields: Fields, stamps: Mapping[str, Any]) -> bytes:
    """Encode the object with these fields replaced; its other fields stay verbatim."""
    return _write({**fields, **stamps})


# From an object to parts


def parts_of(name: str, payload: bytes, fields: Fields) -> list[Part]:
    """The parts for an object: text and media for any reader, then the object verbatim.

    `fields` contains the segment; `payload` is the whole UTF-8 text, for the custom part `name`.
    """
    segments = list(_flat(value_of(fields, "message_segment")))
    text = "".join(_segment_texts(segments)) or _plain_text(fields)
    parts = []
    if text:
        parts.append(Part(text=TextPart(text=text[:MAX_TEXT_CHARACTERS])))
    parts += [part for segment in segments if (part := _media(*segment)) is not None][:MAX_MEDIA]
    parts.append(Part(custom=CustomPart(name=name, json=payload.decode())))
    return parts


def _flat(segment: Any) -> Iterator[tuple[str, str]]:
    """Type and data of each segment, in order; skips values that are not segments."""
    # A stack, because recursion would overflow on hostile input.
    stack = [segment]
    while stack:
        match stack.pop():
            case {"type": "seglist", "data": list(inner)}:
                stack += reversed(inner)
            case {"type": str(kind), "data": str(data)}:
                yield kind, data


def _segment_texts(segments: Iterable[tuple[str, str]]) -> Iterator[str]:
    for kind, data in segments:
        if kind == "text":
            yield data
        elif kind == "at":
            yield f"@{data} "


def _plain_text(fields: Fields) -> str:
    """The text of an object whose segments have none."""
    names = ("raw_message", "processed_plain_text", "display_message", "content", "message", "text")
    return next((text for name in names if (text := string_of(fields, name))), "")


def _media(kind: str, data: str) -> Part | None:
    """A segment's media, if small or referenced; None otherwise."""
    name = _MEDIA.get(kind)
    if name is None:
        return None
    if data.startswith(("http://", "https://")):
        media = MediaPart(url=data) if len(data) <= _URL_MAX_CHARACTERS else None
    else:
        media = _inline(data)
    return None if media is None else Part(**{name: media})  # type: ignore[arg-type]


def _inline(data: str) -> MediaPart | None:
    """Media in base64, with or without the prefix of a data URI; None if too large or malformed."""
    mime_type = ""
    if data.startswith("data:"):
        mime_type, _, data = data[len("data:") :].partition(";base64,")
    data = data.removeprefix("base64://")
    if not data or len(data) > MAX_MEDIA_BYTES * 4 // 3 + 4 or len(mime_type) > _TYPE_MAX_CHARACTERS:
        return None
    try:
        return MediaPart(inline=base64.b64decode(data, validate=True), mime_type=mime_type)
    except (binascii.Error, ValueError):
        return None


# From a message to an object


def objects_in(message: Message, *names: str) -> Iterator[tuple[str, Fields]]:
    """The verbatim objects in a message's custom parts of these names, each with the name of its part."""
    for part in message.parts:
        custom = part.custom
        if part.HasField("custom") and custom.name in names and custom.HasField("json"):
            with suppress(ValueError):
                yield custom.name, read_object(custom.json.encode())


def carried(message: Message) -> tuple[str, Fields] | None:
    """The verbatim object of a client or backend, with its part's name; None for other messages."""
    return next(objects_in(message, MESSAGE, BROADCAST), None)


def text_of(message: Message) -> str:
    """The text of a message."""
    return "".join(part.text.text for part in message.parts if part.HasField("text"))


def segment_of(message: Message) -> dict[str, Any]:
    """A message's `message_segment`: one segment, or a `seglist`.

    Without segments it is a text: that of a failed reply's error, for which most clients have no other place,
    or an empty one.
    """
    segments = list(_segments(message))
    if not segments:
        return {"type": "text", "data": message.error.message}
    return segments[0] if len(segments) == 1 else {"type": "seglist", "data": segments}


def _segments(message: Message) -> Iterator[dict[str, str]]:
    for part in message.parts:
        kind = part.WhichOneof("content") or ""
        if kind == "text":
            yield {"type": "text", "data": part.text.text}
        elif kind == "mention":
            yield {"type": "at", "data": part.mention.user or part.mention.name}
        elif kind == "quote":
            yield {"type": "reply", "data": part.quote.message_id}
        elif kind in _SEGMENTS:
            media = getattr(part, kind)
            data = base64.b64encode(media.inline).decode() if media.inline else media.url or media.storage_key
            yield {"type": _SEGMENTS[kind], "data": data}


def message_info(message: Message, message_id: str, platform: str) -> dict[str, Any]:
    """A message's `message_info`, with all required fields. An unnamed author is the agent, or `system`."""
    author = message.author
    sender = author.user or (author.role == ROLE_AGENT and message.address.agent) or "system"
    return {
        "platform": platform,
        "message_id": message_id,
        "time": seconds(message.created_at),
        "sender_info": {
            "user_info": {"platform": platform, "user_id": sender, "user_nickname": author.name or sender}
        },
    }


def left_out(message: Message, tenant: str, size: int, limit: int) -> Message:
    """A message in place of one whose frame is larger than the clients of a protocol accept."""
    text = (
        f"[Message {public_id(message.id, tenant)} was left out: it has {size} bytes, "
        f"and clients of this protocol accept {limit}]"
    )
    short = Message()
    short.CopyFrom(message)
    del short.parts[:]
    short.parts.append(Part(text=TextPart(text=text)))
    return short


def header_text(value: str) -> str:
    """A header in UTF-8, which clients send although HTTP decodes it as Latin-1."""
    with suppress(UnicodeError):
        return value.encode("latin-1").decode()
    return value


def conversation_of(platform: str) -> Conversation:
    """The conversation of all clients of one agent and platform."""
    return Conversation(kind=CONVERSATION_KIND_GROUP, id=platform)


def opening_of(protocol: str, tenant: str, agent: str, platform: str) -> ConnectionOpened:
    """The connection of one of these clients.

    They share a user, for whom deliveries are tracked per agent and platform.
    """
    opened = ConnectionOpened(user=f"{platform}@{agent}", protocol=protocol)
    address = opened.address
    address.tenant, address.agent, address.platform = tenant, agent, platform
    address.conversation.CopyFrom(conversation_of(platform))
    opened.resume.delivered = True
    return opened


def public_id(message_id: str, tenant: str) -> str:
    """A message's id for clients and backends, with the tenant in it."""
    return f"{message_id}@{tenant}"


def seconds(timestamp: Timestamp) -> float:
    """Unix time in seconds, the format of all times in these protocols."""
    return float(timestamp.seconds) + round(timestamp.nanos / 1e9, 6)
