"""What a closed connection means for the client. Pure."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClosingFrame

from trunkline_client.errors import Closed

#: Close codes outside 4000 to 4499 after which the same client may be served again: going away, none
#: given, none received, internal error, restart, overload, bad gateway, failed TLS handshake.
_COME_BACK = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015})

_TEXTS = {
    1000: "The edge ended the connection",
    1009: "A frame is larger than the other end takes",
}


class Reconnect(NamedTuple):
    """Connect again, no sooner than after `at_least_s`."""

    at_least_s: float
    why: str


def interpret_close(code: int, reason: str, closing: ClosingFrame | None, renews: bool) -> Reconnect | Closed:
    """What to do after the connection was closed with this code; `closing` is its last frame.

    `renews`: another token can be had, should this one have expired.
    """
    told = closing.message if closing else _TEXTS.get(code, f"The connection was closed with code {code}")
    is_over = code == catalogue.TOKEN_EXPIRED.close_code and not renews
    if code in _COME_BACK or (4000 <= code <= 4499 and not is_over):
        return Reconnect((closing.reconnect_after_ms if closing else 0) / 1000, told)
    return Closed(code, closing.reason if closing else reason, told)
