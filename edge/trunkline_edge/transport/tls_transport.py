"""TLS on one TCP connection.

Used instead of the event loop's own TLS, which has three defects here. Its buffer cannot be measured, so
the backlog of a slow client would be unknown. It cannot end one direction only, so a client that still sends
would lose the last frames. And asyncio and uvloop differ in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Any, cast

from trunkline_edge.transport.connection_budget import ConnectionBudget
from trunkline_edge.transport.lingering_close import end_writing
from trunkline_edge.transport.peer_address import peer_ip

READ_BYTES = 256 * 1024
#: Bytes that are decrypted at a time: a full record.
PIECE_BYTES = 16 * 1024
#: Records of data after which other clients are served before more is decrypted: a record may have one byte.
SLICE_RECORDS = 64
#: Answers of TLS itself, such as to key updates, that a client may leave unread before it is cut off.
MAX_ANSWER_BYTES = 64 * 1024

#: Answer to a client that speaks plain HTTP, as one with an http:// or ws:// URL does.
_TLS_REQUIRED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"This port speaks TLS: use https:// and wss://\n"
)

_NO_PROTOCOL = asyncio.Protocol()


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """The protocol of a TCP connection, and the transport of the protocol above it.

    The protocol above sees the connection once the handshake is done, which has a time limit. The transport
    behaves like TCP's own, whose buffer is the only one: `write_eof` ends one direction, and a client that
    closes the other without a TLS close alert has ended it.
    """

    __slots__ = (
        "_answer_bytes",
        "_budget",
        "_context",
        "_got_eof",
        "_has_more",
        "_incoming",
        "_is_closing",
        "_is_open",
        "_is_paused",
        "_on_failure",
        "_outgoing",
        "_protocol",
        "_raw",
        "_received",
        "_sent_eof",
        "_timeout_s",
        "_timer",
        "_tls",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        timeout_s: float,
        on_failure: Callable[[str, str], None] = lambda remote_ip, problem: None,
        budget: ConnectionBudget | None = None,
    ) -> None:
        """`timeout_s` limits the handshake; `on_failure` gets the client's address and the problem.

        A connection beyond the budget is cut off: there is no answer before the handshake.
        """
        super().__init__()
        self._context = context
        self._protocol = protocol
        self._timeout_s = timeout_s
        self._on_failure = on_failure
        self._budget = budget
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._raw: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        #: The handshake is done.
        self._is_open = False
        self._got_eof = False
        self._sent_eof = False
        self._is_closing = False
        #: The protocol has paused reading.
        self._is_paused = False
        #: Received records are delivered by a later call of the loop.
        self._has_more = False
        #: What was received and not decrypted yet.
        self._received = b""
        #: Answers of TLS itself since the client has last taken everything.
        self._answer_bytes = 0

    # Events of the TCP connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limit of the handshake."""
        self._raw = cast("asyncio.Transport", transport)
        if self._budget is not None and not self._budget.await_head(self):
            self.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._raw.abort)

    def data_received(self, data: bytes) -> None:
        """Decrypt bytes from the client and pass them on."""
        if self._is_open:
            self._received += data
            if not self._has_more:
                self._deliver()
        else:
            self._incoming.write(data)
            if self._continue_handshake():
                self._deliver()

    def eof_received(self) -> bool:
        """End the client's direction."""
        if self._is_open:
            self._end_received()
        return self._is_open

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end of the TCP connection."""
        self._stop_timer()
        if self._budget is not None:
            self._budget.closed(self)
        # Protocol and transport would keep each other alive.
        protocol, self._protocol = self._protocol, _NO_PROTOCOL
        self._is_closing = True
        if self._is_open:
            protocol.connection_lost(exc)
        # These hold much memory, and the protocol may keep this object alive until garbage collection.
        del self._tls, self._incoming, self._outgoing

    def pause_writing(self) -> None:
        """Pass on that the client did not take everything at once."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has caught up."""
        self._protocol.resume_writing()

    # Handshake, reading, ending

    def _continue_handshake(self) -> bool:
        """Continue the handshake; return True once it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._stop_timer()
            self._report("TLS handshake", error)
            if error.reason == "HTTP_REQUEST":
                self._raw.write(_TLS_REQUIRED)
            else:
                self._flush()
            self._raw.close()
            return False
        self._stop_timer()
        self._flush()
        self._is_open = True
        self._protocol.connection_made(self)
        return True

    def _report(self, phase: str, error: ssl.SSLError) -> None:
        reason = (error.reason or "connection ended").lower().replace("_", " ")
        self._on_failure(peer_ip(self._raw), f"{phase}: {reason}")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _deliver(self) -> None:
        """Pass on what was received; after many records, a later call of the loop continues."""
        if self._got_eof or self._is_closing:
            return
        read: list[bytes] = []
        at, is_over = 0, False
        while not is_over:
            self._incoming.write(self._received[at : at + PIECE_BYTES])
            at += PIECE_BYTES
            try:
                ended = self._decrypt(read)
            except ssl.SSLError as error:
                self._report("TLS", error)
                self.abort()
                return
            is_over = (
                ended or at >= len(self._received) or len(read) > SLICE_RECORDS or self._outgoing.pending > 0
            )
        self._received = self._received[at:]
        if not self._answer():
            return
        if data := read[0] if len(read) == 1 else b"".join(read):
            self._protocol.data_received(data)
        if ended:
            self._end_received()
        elif self._received and not self._is_closing:
            self._deliver_later()

    def _decrypt(self, read: list[bytes]) -> bool:
        """Decrypt the records that are complete; return True if the client has ended its direction."""
        try:
            while self._incoming.pending or self._tls.pending():
                data = self._tls.read(READ_BYTES)
                if not data:
                    return True
                read.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return True
        return False

    def _answer(self) -> bool:
        """Write the answers of TLS itself; return False if the client leaves too many unread."""
        if self._outgoing.pending:
            unread = self._raw.get_write_buffer_size()
            self._answer_bytes = self._answer_bytes + self._outgoing.pending if unread else 0
            if self._answer_bytes > MAX_ANSWER_BYTES:
                self.abort()
                return False
            self._flush()
        return True

    def _deliver_later(self) -> None:
        self._has_more = True
        self._raw.pause_reading()
        asyncio.get_running_loop().call_soon(self._deliver_more)

    def _deliver_more(self) -> None:
        self._has_more = False
        if not self._is_paused and not self._is_closing:
            self._deliver()
            if not self._has_more and not self._is_paused and not self._is_closing:
                self._raw.resume_reading()

    def _end_received(self) -> None:
        if self._got_eof or self._is_closing:
            return
        self._got_eof = True
        if not self._protocol.eof_received():
            self.close()

    def _send_close_alert(self) -> None:
        if self._sent_eof:
            return
        self._sent_eof = True
        # Raises if the client has not sent its own alert yet; ours is sent all the same.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._raw.write(self._outgoing.read())

    # Calls of the protocol; see asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._sent_eof or self._is_closing:
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._sent_eof and not self._is_closing:
            self._send_close_alert()
            end_writing(self._raw)

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._send_close_alert()
            self._raw.close()

    def abort(self) -> None:
        self._is_closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if self._is_closing:
            return
        if not self._received:
            self._raw.resume_reading()
        elif not self._has_more:
            # Reading was paused between two slices.
            self._deliver_later()

    def is_reading(self) -> bool:
        return not self._is_paused and not self._is_closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return getattr(self, "_tls", default)
        return self._raw.get_extra_info(name, default)
