"""Mapping between a client's `msg_id`, a string or number, and the id of its message.

Most are equal. A msg_id that is no valid id of the contract follows a mark: as JSON if that is short
enough, else as a hash, whose original only its connection knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

MsgId = str | int | float

#: A longer msg_id is rejected.
MAX_CHARACTERS = 1024

#: Longest id in the contract.
_ID_MAX_CHARACTERS = 128

_MARK = "="
_HASHED = "=#"
_UNNAMED = "=!"


def frame_id(msg_id: MsgId) -> str:
    """The id for a msg_id: deterministic, see `is_hashed`."""
    if isinstance(msg_id, str) and _is_plain(msg_id):
        return msg_id
    # ASCII JSON contains no characters that an id may not have.
    text = _MARK + json.dumps(msg_id)
    return text if len(text) <= _ID_MAX_CHARACTERS else _HASHED + _hash(text.encode())


def unnamed(content: bytes) -> str:
    """An id for a message without msg_id, which is never sent to the client. `content` makes it unique."""
    return _UNNAMED + _hash(content)


def is_hashed(ident: str) -> bool:
    """Whether the msg_id cannot be restored from the id alone; `msg_id_of` then needs it."""
    return ident.startswith(_HASHED)


def msg_id_of(ident: str, long_ones: Iterable[str]) -> MsgId | None:
    """The msg_id of an id; None if there was none, or if it is not among `long_ones`."""
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
