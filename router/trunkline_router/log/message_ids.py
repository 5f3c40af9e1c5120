"""Ids of messages: the epoch of a log and the message's seq in it."""

from __future__ import annotations

import os
import re

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
#: Base32 characters that hold 64 bits.
_EPOCH_CHARACTERS = 13

#: Epoch and seq; 18 digits fit a signed 64-bit integer.
_MESSAGE_ID = re.compile("([0-9a-hjkmnp-tv-z]{13})-([1-9][0-9]{0,17})")


def new_epoch() -> str:
    """Make an epoch that no log ever had: 64 random bits in base32."""
    bits = int.from_bytes(os.urandom(8), "big")
    return "".join(_BASE32[bits >> shift & 31] for shift in range(5 * (_EPOCH_CHARACTERS - 1), -1, -5))


def message_id(epoch: str, seq: int) -> str:
    """Format the id of a message."""
    return f"{epoch}-{seq}"


def parse_message_id(text: str) -> tuple[str, int] | None:
    """Parse an id into epoch and seq; None for any other text."""
    match = _MESSAGE_ID.fullmatch(text)
    return None if match is None else (match[1], int(match[2]))
