"""A client's `msg_id` and the id of its message: a string or a number on one side, a token on the other.

Most are alike on both sides. What cannot be an id of the contract as it is stands there behind a mark:
as JSON where that is short enough, and else as a hash, of which only its connection knows the original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

MsgId = str | int | float

#: A longer msg_id cannot be taken.
MAX_CHARACTERS = 1024

#: What an id of the contract may hold.
_ID_MAX_CHARACTERS = 128

_MARK = "="
_HASHED = "=#"
_UNNAMED = "=!"


def frame_id(msg_id: MsgId) -> str:
    """The id of a message with this msg_id, always the same; see `is_hashed`."""
    if isinstance(msg_id, str) and _is_plain(msg_id):
        return msg_id
    # ASCII only, so that there is nothing in it that an id may not hold.
    text = _MARK + json.dumps(msg_id)
    return text if len(text) <= _ID_MAX_CHARACTERS else _HASHED + _hash(text.encode())


def unnamed(content: bytes) -> str:
    """The id of a message without a msg_id; nobody is told of it. `content` makes it unlike any other."""
    return _UNNAMED + _hash(content)


def is_hashed(ident: str) -> bool:
    """The msg_id cannot be read out of the id; `msg_id_of` needs to be told it."""
    return ident.startswith(_HASHED)


def msg_id_of(ident: str, long_ones: Iterable[str]) -> MsgId | None:
    """The msg_id that became this id; None where there was none, or it is not among `long_ones`."""
    if is_hashed(ident):
        return next((one for one in long_ones if frame_id(one) == ident), None)
    if not ident.startswith(_MARK):
        return ident or None
    try:
        msg_id: MsgId = json.loads(ident[len(_MARK) :])
    except ValueError:
        return None
    return msg_id


def _is_plain(text: str) -> bool:
    return 0 < len(text) <= _ID_MAX_CHARACTERS and not text.startswith(_MARK) and text.isprintable()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=24).hexdigest()
