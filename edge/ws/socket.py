"""One WebSocket on one TCP connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ServerFrame
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from edge.core.closing import closing_frame
from edge.core.connection import Connection, State
from edge.core.framing import framed
from edge.dialects.codec import Codec
from edge.dialects.registry import CODECS, DEFAULT
from edge.ws import request as requests
from edge.ws.host import Host

#: How long a peer may take to complete the closing handshake.
CLOSE_TIMEOUT_S = 5.0

# websockets logs each dirty disconnect; what matters of them is counted.
_quiet = logging.getLogger("trunkline.edge.ws")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def _select(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first codec that the client offers too; none, which means JSON, where it offers no known one."""
    return next((Subprotocol(name) for name in CODECS if name in offered), None)


class Socket(asyncio.Protocol):
    """Speaks WebSocket on a transport that the port has handed over.

    Parsing and the closing handshake are those of `websockets`' sans-I/O core. Frames to the client
    are written as they come from the edge's core: they are encoded once for all who get them. The
    response to the handshake is held back until the first of them, so that both leave together.
    """

    __slots__ = (
        "_closing",
        "_fragments",
        "_host",
        "_protocol",
        "_request",
        "_response",
        "_resume_first",
        "_shaking",
        "connection",
        "remote_ip",
        "transport",
    )

    def __init__(self, host: Host, transport: asyncio.Transport) -> None:
        self._host = host
        self.transport = transport
        # The transport writes at once, and says so as soon as the client does not take everything, and
        # when it has.
        transport.set_write_buffer_limits(0)
        self.connection: Connection | None = None
        peer = transport.get_extra_info("peername")
        self.remote_ip: str = peer[0] if isinstance(peer, tuple) else ""
        self._protocol = ServerProtocol(
            select_subprotocol=_select,
            max_size=host.core.limits.frame_bytes,
            logger=_quiet,
        )
        self._response: Response | None = None
        self._request: requests.ConnectRequest | None = None
        self._fragments: bytearray | None = None
        self._resume_first = False
        #: Nothing was written yet but, at most, the response to the handshake.
        self._shaking = True
        self._closing: asyncio.TimerHandle | None = None

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        """Bytes came from the client."""
        connection = self.connection
        if connection is not None:
            connection.heard = True
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
            elif isinstance(event, Request):
                self._handshake(event)
        if isinstance(protocol.parser_exc, PayloadTooBig):
            self._too_large()
        # What is to be said comes before the protocol's own close frame.
        self._host.settle()
        self._flush()
        if protocol.eof_sent:
            self._leave()

    def eof_received(self) -> bool:
        """The client sends no more; the transport closes once the client has what was written."""
        self._leave()
        self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, by whatever cause."""
        if self._closing is not None:
            self._closing.cancel()
        self._leave()

    def _leave(self) -> None:
        """The client has closed or was cut off: nothing more is written to it."""
        self._host.handshakes.pop(self, None)
        self._resume_first = False
        connection, self.connection = self.connection, None
        if connection is not None:
            self._host.gone(connection)
            # The end of the stream is still to be read.
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client did not take all at once."""
        if self.connection is not None:
            self.connection.lags = True

    def resume_writing(self) -> None:
        """The client has taken everything."""
        if self.connection is not None:
            self._host.caught_up(self.connection)

    # Handshake

    def _handshake(self, request: Request) -> None:
        protocol = self._protocol
        if request.path.partition("?")[0] != requests.PATH:
            text = f"There is nothing at this path; WebSockets connect to {requests.PATH}\n"
            self._reject(HTTPStatus.NOT_FOUND, text)
            return
        response = protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            protocol.send_response(response)
            self._finish()
            return
        self._response = response
        try:
            self._request = requests.parse(request.path, self._codec)
        except Refused as reason:
            self.refuse(reason)
            return
        if self._request.resume_by_frame:
            self._resume_first = True
            self.transport.write(self.accept())
        else:
            self._open()

    @property
    def _codec(self) -> Codec:
        name = self._protocol.subprotocol
        return CODECS[name] if name else DEFAULT

    def _reject(self, status: HTTPStatus, text: str) -> None:
        self._protocol.send_response(self._protocol.reject(status, text))
        self._finish()

    def _open(self) -> None:
        assert self._request is not None
        wish, self._request = self._request, None
        self._host.open(self, wish)

    def accept(self) -> bytes:
        """The response to the handshake, if it was held back until now."""
        if self._response is None:
            return b""
        response, self._response = self._response, None
        self._protocol.send_response(response)
        return b"".join(self._protocol.data_to_send())

    # Frames

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if frame.fin:
                self._message(bytes(frame.data))
            else:
                self._fragments = bytearray(frame.data)
        elif opcode is Opcode.CONT and self._fragments is not None:
            self._fragments += frame.data
            if frame.fin:
                payload, self._fragments = bytes(self._fragments), None
                self._message(payload)

    def _message(self, payload: bytes) -> None:
        if self.connection is not None:
            self._host.core.received(self.connection, payload)
        elif self._resume_first:
            self._resume_first = False
            assert self._request is not None
            if self._host.resume(self, self._request, payload):
                self._open()

    # Writing and closing

    def write(self, data: bytes) -> None:
        """Write frames; ahead of the first of them, the response to the handshake."""
        if self._shaking:
            self._shaking = False
            self._host.handshakes.pop(self, None)
            data = self.accept() + data
        self.transport.write(data)

    def _too_large(self) -> None:
        """A frame is over the limit: say so, before the close that the protocol has begun."""
        core = self._host.core
        reason = catalogue.FRAME_TOO_LARGE.refused(limit=core.limits.frame_bytes)
        if self._resume_first:
            self.refuse(reason)
        elif self.connection is not None and self.connection.state is State.OPEN:
            core.close(self.connection, reason)

    def refuse(self, reason: Refused) -> None:
        """Turn away a client that has no connection yet: 101, a `closing` frame, and the close."""
        codec = self._codec
        closing = closing_frame(reason)
        self.write(framed(codec.encode(ServerFrame(closing=closing)), codec.binary))
        self.close(closing.code, closing.reason)

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the TCP connection is aborted where it takes too long."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason[:120])
        self._flush()
        self._finish()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                # The empty string stands for the end of the stream. Closing while the client still
                # sends would reset the TCP connection, and what was said last would be lost.
                self.transport.write_eof()
        if self._protocol.close_expected():
            self._finish()

    def _finish(self) -> None:
        """Wait for the peer to close its side, but not for ever."""
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
