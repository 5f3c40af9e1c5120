"""Shared base of the protocols that clients connect with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame, ServerFrame
from trunkline_runtime.refusals import closing_frame

from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.core.counters import CLIENT_LEFT
from trunkline_edge.core.encoding import encode_frame
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.peer_address import peer_ip

#: Time for the peer to read what was written last and to close its side.
CLOSE_TIMEOUT_S = 5.0
#: Time for the answer to a client that has ended its side already; nearly all such clients have left.
HALF_CLOSED_S = 1.0


class ClientProtocol(asyncio.Protocol, ClientTransport):
    """Protocol of one client on a TCP connection that ProtocolSelector has handed over."""

    __slots__ = ("_close_timer", "_handler", "got_eof", "transport")

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport) -> None:
        super().__init__(remote_ip=peer_ip(transport))
        self._handler = handler
        self.transport = transport
        # With limits of 0 the transport reports as soon as the client does not take everything, and when it
        # has. It still writes at once.
        transport.set_write_buffer_limits(0)
        self._close_timer: asyncio.TimerHandle | None = None
        #: The client has ended its side, and waits for the response to the handshake.
        self.got_eof = False

    def _read_headers(self, headers: Iterable[tuple[str, str]], http_version: str = "1.1") -> dict[str, str]:
        """Note the request's source; return the headers by lower-case name, of a repeated one the first."""
        pairs = [(name.lower(), value) for name, value in headers]
        self.source = RequestSource.read(self.remote_ip, pairs, http_version)
        return dict(reversed(pairs))

    # Rejecting

    def _reject_with(self, codec: Codec, reason: Refused) -> None:
        closing = closing_frame(reason)
        self.reject_connection(codec, closing, encode_frame(codec, ServerFrame(closing=closing)))

    def reject_connection(self, codec: Codec, closing: ClosingFrame, data: bytes) -> None:
        """See ClientTransport."""
        if not self._reject_by_http(codec, closing):
            self.write(data)
            self.close(codec.close_code(closing), closing.reason)

    def _reject_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        """Reject the client by an HTTP status. Return False if it must receive `closing` instead."""
        raise NotImplementedError

    # Reading and writing

    @property
    def buffered(self) -> int:
        """See ClientTransport."""
        return self.transport.get_write_buffer_size()

    @property
    def is_closing(self) -> bool:
        """See ClientTransport."""
        return self.transport.is_closing()

    def pause_reading(self) -> None:
        """See ClientTransport."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """See ClientTransport."""
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        """Note that the client did not take everything at once."""
        if self.connection is not None:
            self._handler.core.backpressure.write_buffered(self.connection)

    def resume_writing(self) -> None:
        """Note that the client has taken everything."""
        if self.connection is not None:
            self._handler.step(self._handler.core.backpressure.caught_up, self.connection)

    # Ending

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the TCP connection, which is gone."""
        self._cancel_close_timer()
        self._handler.budget.closed(self.transport)

    def _gone(self, cause: str) -> None:
        """Remove the connection: the client has left or was cut off. Idempotent."""
        self._handler.end_handshake(self)
        connection, self.connection = self.connection, None
        if connection is not None:
            self._handler.gone(connection, cause)
            # The end of the stream is still to be read.
            self.transport.resume_reading()

    def _answered(self) -> None:
        """End the deadline of the handshake, whose response is written; a client that cannot go on leaves."""
        self._handler.end_handshake(self)
        if self.got_eof:
            asyncio.get_running_loop().call_soon(self._leave_after_answer)

    def _await_answer(self) -> None:
        """Note that the client has ended its side, and may read an answer that comes soon. Idempotent."""
        if not self.got_eof:
            self.got_eof = True
            asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._leave_unanswered)

    def _leave_unanswered(self) -> None:
        if not self.transport.is_closing():
            self._leave_after_answer()

    def _leave_after_answer(self) -> None:
        self._gone(CLIENT_LEFT)
        self.transport.close()
        self._await_close()

    def _await_close(self) -> None:
        """Abort unless the peer closes its side in time. Idempotent."""
        if self._close_timer is None:
            self._handler.budget.ending(self.transport)
            loop = asyncio.get_running_loop()
            self._close_timer = loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _cancel_close_timer(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
