"""HTTP/1.1 for one request, after which the connection returns to protocol selection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import h11
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from trunkline_edge.http_errors import error_response, response_bytes
from trunkline_edge.transport.connection_budget import ConnectionBudget
from trunkline_edge.transport.lingering_close import close_lingering
from trunkline_edge.transport.request_head import RequestParser, malformed

# Uvicorn warns of each malformed request; the edge counts them instead.
_errors_only = logging.getLogger("trunkline.edge.http")
_errors_only.setLevel(logging.ERROR)

#: Bytes of a chunked body that are parsed before other clients are served: a chunk may have one byte.
SLICE_BYTES = 4096
#: Checks of progress during the time limit of a request.
CHECKS = 4
#: Time beyond the limit for the app's own answer to a body that is late.
GRACE_S = 1.0

#: Key of the scope's `state` for an event that is set once the client has ended its side.
CLIENT_ENDED = "client_ended"


class HttpProtocol(H11Protocol):
    """Serves one request, and passes the connection to a protocol selector when the next one begins.

    Browsers and proxies reuse a connection for WebSockets and event streams after plain requests.

    The body must arrive within the request's time limit, whether it is read or not; a client that takes
    nothing of the response for as long is cut off. A client that ends its side after the request gets the
    response.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        parser: RequestParser,
        received: bytes,
        *,
        timeout_s: float,
        select: Callable[[asyncio.Transport, bytes, bool, bool], None],
        budget: ConnectionBudget,
        count_refused: Callable[[Refused, asyncio.Transport], None],
    ) -> None:
        """`parser` has read the head of a request, behind which the client has sent `received`.

        `select` passes on the connection, with what was received of the next request, whether the client has
        ended its side, and whether writing is paused.
        """
        self._client_ended = asyncio.Event()
        app_state: dict[str, Any] = {CLIENT_ENDED: self._client_ended}
        super().__init__(config=config, server_state=state, app_state=app_state)
        self.conn = parser
        self.logger = _errors_only
        self._parser = parser
        self._unread = received
        self._timeout_s = timeout_s
        self._select = select
        self._budget = budget
        self._count_refused = count_refused
        self._began_at = self._took_at = self.loop.time()
        #: What the client had not taken at the last check.
        self._buffered = 0
        self._check: asyncio.TimerHandle | None = None

    # Events of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Serve the request."""
        self._tcp = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        self._check_later()
        self._read_slice()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unread += data
        if self._is_between_requests():
            self._select_next()
        else:
            self._read_slice()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the response if the request is complete."""
        self._client_ended.set()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if cycle.more_body:
            self._end(malformed("the body is incomplete"))
        return not cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_checks()
        self._budget.closed(self._tcp)
        self._unread = b""
        super().connection_lost(exc)

    # Reading

    @property
    def is_request_complete(self) -> bool:
        """The body was received and parsed."""
        return self.conn.their_state is not h11.SEND_BODY

    def _read_slice(self) -> None:
        """Parse a part of what was received; what remains is left for a later call of the loop."""
        piece = self._unread[:SLICE_BYTES] if self._parser.is_chunked else self._unread
        self._unread = self._unread[len(piece) :]
        if piece:
            self.conn.receive_data(piece)
        self.handle_events()
        if self._unread and self._serves:
            self.transport.pause_reading()
            self.loop.call_soon(self._read_next_slice)

    def _read_next_slice(self) -> None:
        if self._unread and self._serves:
            self._read_slice()
            if not self._unread and self._serves and not self.flow.read_paused:
                self.transport.resume_reading()

    @property
    def _serves(self) -> bool:
        """The connection was not passed on, nor closed."""
        return self.transport.get_protocol() is self and not self.transport.is_closing()

    def handle_events(self) -> None:
        """See H11Protocol: handle what was parsed, up to the end of the request."""
        if not self._is_between_requests():
            super().handle_events()
        if self._serves and self._is_between_requests():
            if self._unread or self.conn.trailing_data[0]:
                self._select_next()
            elif self._client_ended.is_set():
                self.transport.close()
            else:
                self._budget.idle(self._tcp)

    def _is_between_requests(self) -> bool:
        return self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE

    def _select_next(self) -> None:
        received = self.conn.trailing_data[0] + self._unread
        self._unread = b""
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        self._stop_checks()
        self._select(self._tcp, received, self._client_ended.is_set(), self.flow.write_paused)

    def _should_upgrade(self) -> bool:
        """Ignore what a request for another protocol asks for; WebSockets are selected before."""
        return False

    # Ending

    def send_400_response(self, msg: str) -> None:
        """Reject a request that HTTP does not allow."""
        self._end(malformed(self._parser.problem or msg))

    def _end(self, reason: Refused) -> None:
        """Reject the request, unless it was answered, and close."""
        self._count_refused(reason, self._tcp)
        cycle = self.cycle
        if cycle is None or not cycle.response_started:
            is_head = self.scope is not None and self.scope["method"] == "HEAD"
            self._tcp.write(response_bytes(error_response(reason), is_head=is_head))
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unread = b""
        self._budget.idle(self._tcp)
        close_lingering(self._tcp)

    # Time

    def _check_later(self) -> None:
        self._check = self.loop.call_later(self._timeout_s / CHECKS, self._check_progress)

    def _stop_checks(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _check_progress(self) -> None:
        """Cut off a client that sends no body, or takes no response, within the time limit."""
        now, buffered = self.loop.time(), self._tcp.get_write_buffer_size()
        if not buffered or buffered < self._buffered:
            self._took_at = now
        self._buffered = buffered
        if not self.is_request_complete and now - self._began_at > self._timeout_s + GRACE_S:
            self._end(catalogue.BODY_TIMEOUT.refused(limit_s=f"{self._timeout_s:g}"))
        elif now - self._took_at > self._timeout_s:
            self._tcp.abort()
        elif buffered or not self._is_between_requests():
            self._check_later()
        else:
            self._check = None


class _Transport:
    """The transport, for Uvicorn: a close does not reset a connection on which the body still arrives."""

    def __init__(self, transport: asyncio.Transport, protocol: HttpProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def close(self) -> None:
        if self._protocol.is_request_complete:
            self._transport.close()
        else:
            close_lingering(self._transport)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
