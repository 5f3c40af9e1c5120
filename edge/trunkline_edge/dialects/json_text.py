"""JSON text from outside: counted, repaired and skimmed before anything is built from it.

Building objects takes a hundred times as long as reading bytes, and longer for a byte of structure than for
a byte of text. Everything that decodes JSON from outside therefore bounds the number of its values first, by
operations that run at the speed of C.

A lone surrogate, half of a character such as an emoji, is an escape like `\\ud83d` without its other half.
JavaScript writes one when a string is cut in the middle of a character. It stands for no character, and
decodes as U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from trunkline_runtime.free_form import MAX_MESSAGE_VALUES

#: Most values in one frame of a client: objects, arrays, strings, numbers, booleans and nulls at all levels.
MAX_FRAME_VALUES = MAX_MESSAGE_VALUES

#: Lone surrogates that are replaced in one text; one with more is not decoded.
MAX_REPLACED = 10_000

#: `top_level_string` looks no further.
SKIM_BYTES = 4096

_WHITE_SPACE = b" \t\n\r"

# One literal prefix makes the search four times as fast.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:"
    rb"[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)

#: Stands for an escaped backslash; JSON does not contain it.
_BACKSLASH = b"\x00"

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|[{}\[\]:,]', re.DOTALL)

_SHORT_BYTES = 1024

#: Cutting out more strings takes long, and they are more than four times the limit of any text.
_MOST_QUOTES = 16 * MAX_FRAME_VALUES

T = TypeVar("T")


def count_values(text: bytes) -> int:
    """Count the values in JSON text without decoding it, in at most 10 ms per MB.

    The count of text that is not JSON covers at least the values before the first error. Of text with far
    more strings than any limit allows, only these are counted.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if (quotes := text.count(b'"')) > _MOST_QUOTES:
        # Each value has two strings at most, with its key.
        return quotes // 4
    outside = b'""'.join(text.split(b'"')[::2]).translate(None, _WHITE_SPACE)
    separators = outside.count(b",") + outside.count(b"[") + outside.count(b"{")
    return 1 + separators - outside.count(b"[]") - outside.count(b"{}")


def count_above(text: bytes, few: int) -> int:
    """Count the values in JSON text if there are more than `few`, else return 0."""
    # A value takes at least two bytes, with its separator.
    if len(text) < 2 * few:
        return 0
    # Most text is long strings. Counting in them as well is quicker than cutting them out of a short text, or
    # of one with escapes.
    if (len(text) < _SHORT_BYTES or b"\\" in text) and text.count(b",") + text.count(b"[") + text.count(
        b"{"
    ) < few:
        return 0
    values = count_values(text)
    return values if values > few else 0


def decode_json(decode: Callable[[bytes], T], text: bytes) -> T:
    """Decode with lone surrogates replaced by U+FFFD. Raises what `decode` raises."""
    try:
        return decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        repaired = replace_lone_surrogates(text)
        if repaired is text:
            raise
        return decode(repaired)


def replace_lone_surrogates(text: bytes) -> bytes:
    """Replace the escapes of lone surrogates by that of U+FFFD.

    Returns `text` itself if there are none, or more than MAX_REPLACED.
    """
    if (b"\\ud" not in text and b"\\uD" not in text) or _BACKSLASH in text:
        return text
    # Of a run of backslashes the pairs are backslashes, and only what is left begins an escape.
    escapes = text.replace(b"\\\\", _BACKSLASH)
    repaired, replaced = _LONE_SURROGATE.subn(rb"\\ufffd", escapes, MAX_REPLACED + 1)
    return repaired.replace(_BACKSLASH, b"\\\\") if 0 < replaced <= MAX_REPLACED else text


def top_level_string(text: bytes, name: bytes) -> str:
    """Return a string member of the object in JSON text; empty if it is not found in the first 4 KB.

    The text may be cut or malformed behind the member.
    """
    depth, key, is_value = 0, b"", False
    for match in _TOKEN.finditer(text, 0, SKIM_BYTES):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1:
            if token == b":":
                is_value = True
            elif token == b",":
                is_value = False
            elif not is_value:
                key = match[1]
            elif key == name:
                return _string(token)
    return ""


def _string(token: bytes) -> str:
    try:
        return decode_json(_decode_string, token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


_decode_string = msgspec.json.Decoder(str).decode
