"""Parts of UI messages and the contract's parts."""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from trunkline.v1.message_pb2 import CustomPart, MediaPart, Part, TextPart

from trunkline_edge.dialects.native.json_output import writer

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode
_write_part = writer(Part.DESCRIPTOR)

#: Parts of the contract by the first half of a media type.
_MEDIA = {"image": "image", "audio": "audio", "video": "video"}
#: Kinds of custom content that UI messages have.
_DATA = "data-"


class UnfitPart(Exception):
    """A part of a user's message that the contract has no counterpart for; `str()` says why."""


def part_of(fields: dict[str, Any]) -> Part | None:
    """The contract's part for a part of a user's message; None for one without content. Raises UnfitPart."""
    kind = fields.get("type")
    match kind:
        case "text":
            text = _string(fields, "text")
            return Part(text=TextPart(text=text)) if text else None
        case "file":
            return _media_of(fields)
        case "step-start":
            return None
    if isinstance(kind, str) and kind.startswith(_DATA):
        json = _encode_json(fields.get("data")).decode()
        return Part(custom=CustomPart(name=kind, json=json))
    shown = kind[:64] if isinstance(kind, str) else "none"
    raise UnfitPart(f"a user's message has text, file and data parts, not a part of type {shown}")


def _media_of(fields: dict[str, Any]) -> Part:
    url, media_type = _string(fields, "url"), _string(fields, "mediaType")
    media = MediaPart(mime_type=media_type)
    if isinstance(fields.get("filename"), str):
        media.name = fields["filename"]
    scheme, _, rest = url.partition(":")
    match scheme.lower():
        case "data":
            media.inline = _inline(rest)
            media.size_bytes = len(media.inline)
        case "http" | "https":
            media.url = url
        case _:
            raise UnfitPart("the url of a file must begin with https:, http: or data:")
    part = Part()
    getattr(part, _MEDIA.get(media_type.partition("/")[0], "file")).CopyFrom(media)
    return part


def _inline(data: str) -> bytes:
    """The bytes in a data URL behind its scheme (RFC 2397)."""
    head, comma, encoded = data.partition(",")
    if not comma:
        raise UnfitPart("the data URL of a file has no data")
    if not head.endswith(";base64"):
        return unquote_to_bytes(encoded)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise UnfitPart("the data URL of a file is not base64") from None


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise UnfitPart(f"{name} must be a string")
    return value


def file_of(media: MediaPart, kind: str) -> dict[str, Any] | None:
    """The file part for media; None if it has no URL."""
    url = media.url
    media_type = media.mime_type or ("application/octet-stream" if kind == "file" else kind)
    if media.WhichOneof("source") == "inline":
        url = f"data:{media_type};base64,{base64.b64encode(media.inline).decode()}"
    return {"type": "file", "url": url, "mediaType": media_type} if url else None


def data_of(part: Part) -> dict[str, Any]:
    """The data part for any other part: the contract's own JSON, or that of custom content."""
    fields = _write_part(part)
    kind = part.WhichOneof("content") or "unknown"
    if kind != "custom":
        del fields["type"]
        return {"type": f"{_DATA}{kind}", "data": fields}
    custom = part.custom
    name = custom.name if custom.name.startswith(_DATA) else f"{_DATA}{custom.name}"
    if custom.WhichOneof("content") == "json":
        return {"type": name, "data": json_or_text(custom.json)}
    return {"type": name, "data": fields.get("data", {})}


def json_or_text(text: str) -> Any:
    """The value of JSON text, or the text itself if it is none."""
    try:
        return _decode_json(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
