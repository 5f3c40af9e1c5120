"""Reads the one file of a form in multipart/form-data (RFC 7578)."""

from __future__ import annotations

from email.message import Message
from typing import NamedTuple

from multipart import MultipartError, MultipartSegment, PushMultipartParser

FORM = "multipart/form-data"

#: Fields that a form may have beside the file.
MAX_FIELDS = 8


class FormFile(NamedTuple):
    """A file of a form, as the client named it."""

    name: str
    content: bytes


def read_file(content_type: str, body: bytes, field: str = "file") -> FormFile | None:
    """The file in a field of a form; None if it has none. Raises ValueError for a malformed form."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ValueError("The form has no boundary")
    try:
        return _read(boundary, body, field)
    except MultipartError as error:
        raise ValueError(f"The form cannot be read: {error}") from None


def _read(boundary: str, body: bytes, field: str) -> FormFile | None:
    found: FormFile | None = None
    name = ""
    chunks: list[bytes] = []
    is_wanted = False
    with PushMultipartParser(boundary, max_segment_count=MAX_FIELDS) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                is_wanted = found is None and event.name == field and event.filename is not None
                name, chunks = event.filename or "", []
            elif event is None:
                if is_wanted:
                    found = FormFile(name, b"".join(chunks))
            elif is_wanted:
                chunks.append(event)
    return found
