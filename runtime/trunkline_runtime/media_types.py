"""Types of media that uploads may have: none that a browser executes, and no programs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Type of files without a name extension, and of those that are only downloaded.
BINARY = "application/octet-stream"

_IMAGES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
}

_OFFICE = "application/vnd.openxmlformats-officedocument"
_OPEN = "application/vnd.oasis.opendocument"

#: Images that LangBot takes, by lower-case name extension.
IMAGE_TYPES: Final[Mapping[str, str]] = MappingProxyType(_IMAGES)

#: All types by lower-case name extension.
MEDIA_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **_IMAGES,
        "bmp": "image/bmp",
        "heic": "image/heic",
        "avif": "image/avif",
        "mp3": "audio/mpeg",
        "wav": "audio/wav",
        "ogg": "audio/ogg",
        "oga": "audio/ogg",
        "opus": "audio/ogg",
        "m4a": "audio/mp4",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "amr": "audio/amr",
        "weba": "audio/webm",
        "mp4": "video/mp4",
        "mov": "video/quicktime",
        "webm": "video/webm",
        "mkv": "video/x-matroska",
        "pdf": "application/pdf",
        "txt": "text/plain",
        "log": "text/plain",
        "md": "text/markdown",
        "csv": "text/csv",
        "tsv": "text/tab-separated-values",
        "json": "application/json",
        "yaml": "application/yaml",
        "yml": "application/yaml",
        "rtf": "application/rtf",
        "epub": "application/epub+zip",
        "zip": "application/zip",
        "doc": "application/msword",
        "xls": "application/vnd.ms-excel",
        "ppt": "application/vnd.ms-powerpoint",
        "docx": f"{_OFFICE}.wordprocessingml.document",
        "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
        "pptx": f"{_OFFICE}.presentationml.presentation",
        "odt": f"{_OPEN}.text",
        "ods": f"{_OPEN}.spreadsheet",
        "odp": f"{_OPEN}.presentation",
    }
)

ALLOWED_TYPES: Final = frozenset({*MEDIA_TYPES.values(), BINARY})

#: Types that a browser may show in place; all others are downloads.
INLINE_TYPES: Final = frozenset(
    each for each in ALLOWED_TYPES if each.partition("/")[0] in ("image", "audio", "video")
)
