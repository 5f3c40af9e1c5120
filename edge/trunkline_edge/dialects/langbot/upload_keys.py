"""Names of uploads in LangBot's clients: `<tenant>/<key>.<extension>`, the `path` of a component."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from trunkline.v1.message_pb2 import Part

from trunkline_edge.dialects.codec import UploadReference

_MEDIA = frozenset({"image", "audio", "video", "file"})

_NAME = re.compile(r"([^/?#\s]{1,400})/([0-9a-f]{48})\.[a-z0-9]{1,8}")
_FILE = re.compile(r"([0-9a-f]{48})\.[a-z0-9]{1,8}")


def upload_name(tenant: str, key: str, extension: str) -> str:
    """The name of an upload, which may be part of a URL as it is."""
    return f"{quote(tenant, safe='')}/{key}.{extension}"


def key_in(file: str) -> str:
    """The key in the last segment of a name; empty if it has another form."""
    found = _FILE.fullmatch(file)
    return found[1] if found else ""


def references_in(parts: Iterable[Part]) -> list[UploadReference]:
    """The media parts whose storage key is the name of an upload; other storage keys mean other stores."""
    references = []
    for part in parts:
        kind = part.WhichOneof("content")
        media = getattr(part, kind) if kind in _MEDIA else None
        if media is not None and (found := _NAME.fullmatch(media.storage_key)):
            references.append(UploadReference(media, unquote(found[1]), found[2]))
    return references
