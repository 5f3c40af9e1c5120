"""Types of request bodies."""

from __future__ import annotations

from codecs import lookup
from email.message import Message

from trunkline.v1 import catalogue

JSON = "application/json"

#: A longer Content-Type is of no type that is served. Parsing takes time in proportion to its square.
MAX_TYPE_CHARACTERS = 256


def check_type(content_type: str, content_encoding: str = "identity", wanted: str = JSON) -> None:
    """Raises Refused unless a body is uncompressed and of the wanted type. JSON must be in UTF-8.

    Web pages can send other types, empty bodies included, to any site without asking first; JSON takes a
    preflight.
    """
    if not _is_type(content_type, wanted) or content_encoding.strip().lower() != "identity":
        text = f"{JSON} in UTF-8" if wanted == JSON else wanted
        raise catalogue.UNSUPPORTED_MEDIA_TYPE.refused(wanted=f"{text}, not compressed")


def _is_type(content_type: str, wanted: str) -> bool:
    """Whether a Content-Type is the wanted one, in UTF-8, however it is spelled."""
    if len(content_type) > MAX_TYPE_CHARACTERS:
        return False
    parsed = Message()
    parsed["content-type"] = content_type
    try:
        charset = lookup(str(parsed.get_param("charset", "utf-8"))).name
    except LookupError:
        return False
    return parsed.get_content_type() == wanted and charset in ("utf-8", "ascii")
