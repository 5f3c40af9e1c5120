"""Translation between LangBot's images, voice messages and files and the contract's media."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.message_pb2 import MediaPart

from trunkline_edge.dialects.codec import FrameRefused

MAX_INLINE_BYTES = 8 << 20
_MAX_URL_CHARACTERS = 4096
_MAX_KEY_CHARACTERS = 1024
#: Separates the MIME type of a data URI from its data.
_MARK = ";base64,"

#: Corresponding fields: the component's key, the part's field, its maximal length.
_TEXTS = (("name", "name", 256), ("sha256", "sha256", 64), ("mime_type", "mime_type", 256))


def part_of_media(kind: str, component: dict[str, Any]) -> MediaPart | None:
    """The media of a component; None if it has no source that fits the contract.

    Of several sources, inline data is preferred to a URL, and a URL to a path. Raises FrameRefused for
    more inline bytes than a message may have.
    """
    media = MediaPart()
    data, url, path = (component.get(key) for key in ("base64", "url", "path"))
    if isinstance(data, str) and data:
        if not _put_inline(kind, media, data):
            return None
    elif isinstance(url, str) and 0 < len(url) <= _MAX_URL_CHARACTERS:
        media.url = url
    elif isinstance(path, str) and 0 < len(path) <= _MAX_KEY_CHARACTERS:
        media.storage_key = path
    else:
        return None
    for key, field, limit in _TEXTS:
        value = component.get(key)
        if isinstance(value, str) and len(value) <= limit and not getattr(media, field):
            setattr(media, field, value)
    size = component.get("size")
    if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 64:
        media.size_bytes = size
    return media


def component_of_media(kind: str, media: MediaPart) -> dict[str, Any]:
    """The component for media."""
    component: dict[str, Any] = {"type": kind}
    match media.WhichOneof("source"):
        case "url":
            component["url"] = media.url
        case "storage_key":
            component["path"] = media.storage_key
        case "inline":
            component["base64"] = _base64_of(media)
    for key, field, _ in _TEXTS:
        if (value := getattr(media, field)) and not (key == "mime_type" and "base64" in component):
            component[key] = value
    if media.size_bytes:
        component["size"] = media.size_bytes
    return component


def _put_inline(kind: str, media: MediaPart, text: str) -> bool:
    """Decode a data URI or plain base64. False unless the same text can be restored from it."""
    data = text
    if text.startswith("data:"):
        head, mark, data = text.partition(_MARK)
        media.mime_type = head.removeprefix("data:")
        if not mark or not 0 < len(media.mime_type) <= 256:
            return False
    try:
        found = binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    if len(found) > MAX_INLINE_BYTES:
        entry = catalogue.INVALID_ARGUMENT
        problem = f"has {len(found)} bytes; at most {MAX_INLINE_BYTES} are allowed"
        raise FrameRefused(entry, entry.sentence(field=f"{kind}.base64", problem=problem))
    media.inline = found
    return _base64_of(media) == text


def _base64_of(media: MediaPart) -> str:
    """A data URI, or plain base64 if the MIME type is unknown."""
    data = base64.b64encode(media.inline).decode()
    return f"data:{media.mime_type}{_MARK}{data}" if media.mime_type else data
