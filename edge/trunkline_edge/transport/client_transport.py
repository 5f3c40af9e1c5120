"""The TCP connection of one client that hears topics."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping

from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.call_metadata import PROXIED
from trunkline_runtime.loopback import is_local_caller

from trunkline_edge.core.connection import Connection
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.transport.connection_handler import ConnectionHandler

#: How long a peer may take to read what was said last, and to close its side.
CLOSE_TIMEOUT_S = 5.0


class ClientTransport(asyncio.Protocol, ABC):
    """What WebSockets and event streams have in common, on a transport that the port has handed over.

    What is to be written comes from the edge's core, encoded once for all who get it. The HTTP response
    with which it all begins is held back until the first of that, so that both leave together.
    """

    __slots__ = (
        "_closing",
        "_host",
        "connection",
        "is_forwarded",
        "is_local",
        "origin",
        "remote_ip",
        "transport",
    )

    def __init__(self, host: ConnectionHandler, transport: asyncio.Transport) -> None:
        self._host = host
        self.transport = transport
        # The transport writes at once, and says so as soon as the client does not take everything, and
        # when it has.
        transport.set_write_buffer_limits(0)
        self.connection: Connection | None = None
        peer = transport.get_extra_info("peername")
        self.remote_ip: str = peer[0] if isinstance(peer, tuple) else ""
        self._closing: asyncio.TimerHandle | None = None
        #: The web page's that connects, if it is one.
        self.origin = ""
        #: The client is on the edge's own machine, and came by no proxy.
        self.is_local = False
        self.is_forwarded = False

    def asked_by(self, headers: Mapping[str, str]) -> None:
        """The request's headers have come, by lower-case name."""
        self.origin = headers.get("origin", "")
        self.is_forwarded = any(name in headers for name in PROXIED)
        self.is_local = is_local_caller(self.remote_ip, is_forwarded=self.is_forwarded)

    # What the shell asks for

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write what the core has; ahead of the first of it, the response that was held back.

        Empty where the dialect has no words for what happened: then the response alone.
        """

    @abstractmethod
    def refuse(self, reason: Refused) -> None:
        """Turn away a client that has no connection yet."""

    @abstractmethod
    def refuse_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        """Turn away a client by an HTTP status. False where it is to be told `closing`, or knows too much."""

    @abstractmethod
    def ping(self) -> None:
        """Find out whether the client still takes what it is written."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """End it once the client has what was written; it is aborted where that takes too long."""

    @abstractmethod
    def admitted(self, frame_bytes: int) -> None:
        """It has a connection now: what was said meanwhile counts. A frame is of so many bytes at most."""

    @abstractmethod
    def frames_in(self, data: bytes) -> int:
        """How many frames lie in what was to be written."""

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    # What the transport tells

    def pause_writing(self) -> None:
        """The client did not take all at once."""
        if self.connection is not None:
            self.connection.lags = True

    def resume_writing(self) -> None:
        """The client has taken everything."""
        if self.connection is not None:
            self._host.caught_up(self.connection)

    def _part(self, cause: str) -> None:
        """The client has left or was cut off: nothing more is written to it."""
        self._host.handshakes.pop(self, None)
        connection, self.connection = self.connection, None
        if connection is not None:
            self._host.gone(connection, cause)
            # The end of the stream is still to be read.
            self.transport.resume_reading()

    def _finish(self) -> None:
        """Wait for the peer to close its side, but not for ever."""
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
