"""Interpretation of WebSocket close codes. Pure."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClosingFrame

from trunkline_client.errors import Closed

#: Close codes outside 4000 to 4499 after which the client reconnects: going away, none given, none
#: received, internal error, restart, overload, bad gateway, failed TLS handshake.
_RECONNECT = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015})

_TEXTS = {
    1000: "The edge closed the connection",
    1009: "A frame is larger than the other end accepts",
}


class Reconnect(NamedTuple):
    """Decision to connect again, no sooner than after `at_least_s`."""

    at_least_s: float
    reason: str


def interpret_close(
    code: int, reason: str, closing: ClosingFrame | None, can_refresh_token: bool
) -> Reconnect | Closed:
    """Decides whether to reconnect after a close with this code; `closing` is the connection's last frame.

    `can_refresh_token`: another token can be had if the current one has expired.
    """
    message = closing.message if closing else _TEXTS.get(code, f"The connection was closed with code {code}")
    is_final = code == catalogue.TOKEN_EXPIRED.close_code and not can_refresh_token
    if code in _RECONNECT or (4000 <= code <= 4499 and not is_final):
        return Reconnect((closing.reconnect_after_ms if closing else 0) / 1000, message)
    return Closed(code, closing.reason if closing else reason, message)
