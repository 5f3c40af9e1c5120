"""Close of a TCP connection whose peer may still send.

To close it at once would reset it, and lose the last bytes that were written (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
import contextlib

#: Time for the peer to read the last bytes and to close its side.
LINGER_S = 2.0
#: Bytes from the peer that are read meanwhile.
MAX_LINGER_BYTES = 1 << 20


def close_lingering(
    transport: asyncio.Transport, linger_s: float = LINGER_S, max_bytes: int = MAX_LINGER_BYTES
) -> None:
    """End our side of a connection, then drop what the peer sends until it ends its own, or for a time.

    Beyond `max_bytes` the connection is reset.
    """
    if transport.is_closing():
        return
    transport.set_protocol(_LingeringClose(transport, transport.get_protocol(), linger_s, max_bytes))
    end_writing(transport)
    transport.resume_reading()


def end_writing(transport: asyncio.Transport) -> None:
    """End our side of a connection, unless the peer has reset it, which the transport reports later."""
    with contextlib.suppress(OSError):
        transport.write_eof()


class _LingeringClose(asyncio.Protocol):
    __slots__ = ("_max_bytes", "_protocol", "_received", "_timer", "_transport")

    def __init__(
        self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol, linger_s: float, max_bytes: int
    ) -> None:
        """`protocol` is the one before, which is notified of the end."""
        self._transport = transport
        self._protocol = protocol
        self._received = 0
        self._max_bytes = max_bytes
        self._timer = asyncio.get_running_loop().call_later(linger_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Drop the data."""
        self._received += len(data)
        if self._received > self._max_bytes:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the protocol before."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)
