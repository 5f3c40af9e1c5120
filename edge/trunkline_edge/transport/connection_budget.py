"""Bounds of the TCP connections on the listening port."""

from __future__ import annotations

import asyncio

from trunkline_edge.core.counters import EdgeCounters

#: Rejected connections that wait for their clients to read the answer; a further one cuts off the first.
MAX_REJECTED = 8


class ConnectionBudget:
    """Bounds all TCP connections of the port, and those for plain HTTP among them.

    A connection beyond a bound displaces the HTTP connection that is idle for longest. If none is idle, one
    beyond the bound of all displaces the client that is being closed for longest, else the connection whose
    request's head is awaited for longest, else the WebSocket whose first message is. A connection that can
    displace none must be rejected by its caller; MAX_REJECTED of these may still read the answer. Connections
    are keyed by transport.
    """

    def __init__(self, max_connections: int, max_http: int, counts: EdgeCounters) -> None:
        self._max = max_connections
        self._max_http = max_http
        self._counts = counts
        self._open: set[asyncio.Transport] = set()
        #: Connections before the end of a request's head, or of the TLS handshake; oldest first.
        self._awaited: dict[asyncio.Transport, None] = {}
        #: HTTP connections that serve a request.
        self._serving: set[asyncio.Transport] = set()
        #: Those that do not; idle for longest first.
        self._idle: dict[asyncio.Transport, None] = {}
        #: WebSockets and event streams that only wait for their peer to close; oldest first.
        self._ending: dict[asyncio.Transport, None] = {}
        #: WebSockets whose client must send the first message; oldest first.
        self._silent: dict[asyncio.Transport, None] = {}
        #: Connections beyond the bound of all, which are being closed.
        self._rejected: dict[asyncio.Transport, None] = {}
        #: Those that a further connection displaces, the least useful first.
        self._displaceable = (self._idle, self._ending, self._awaited, self._silent)

    @property
    def http_connections(self) -> int:
        """Connections for plain HTTP, kept ones included."""
        return len(self._serving) + len(self._idle)

    def await_head(self, transport: asyncio.Transport) -> bool:
        """Count a connection that is new, or on which the next request begins. Return False to reject it."""
        if transport not in self._open:
            is_full = len(self._open) >= self._max
            if is_full and not any(map(self._displace, self._displaceable)):
                self._reject(transport)
                return False
            self._open.add(transport)
        self._idle.pop(transport, None)
        self._awaited[transport] = None
        return True

    def serve_http(self, transport: asyncio.Transport) -> bool:
        """Count a request of plain HTTP, until `idle`. Return False to reject it."""
        self._awaited.pop(transport, None)
        if self.http_connections >= self._max_http and not self._displace(self._idle):
            self._counts.connections_rejected += 1
            self._idle[transport] = None
            return False
        self._serving.add(transport)
        return True

    def serve_client(self, transport: asyncio.Transport) -> None:
        """Count no longer among HTTP: a WebSocket or event stream, which has a bound of its own."""
        self._awaited.pop(transport, None)
        self._silent.pop(transport, None)

    def await_first_message(self, transport: asyncio.Transport) -> None:
        """Note that a WebSocket's client must send a message before it is connected, until `serve_client`."""
        self._silent[transport] = None

    def displace_silent(self) -> bool:
        """Cut off the WebSocket whose first message is awaited for longest. Return False if there is none."""
        return self._displace(self._silent)

    def ending(self, transport: asyncio.Transport) -> None:
        """Note that a WebSocket or event stream has ended, but for its peer's close. Idempotent."""
        self._silent.pop(transport, None)
        if transport in self._open:
            self._ending[transport] = None

    def idle(self, transport: asyncio.Transport) -> None:
        """Note that a connection was answered, and only waits for its next request or its end."""
        self._awaited.pop(transport, None)
        self._serving.discard(transport)
        if transport in self._open:
            self._idle[transport] = None

    def closed(self, transport: asyncio.Transport) -> None:
        """Forget a connection. Idempotent."""
        self._open.discard(transport)
        self._serving.discard(transport)
        self._awaited.pop(transport, None)
        self._idle.pop(transport, None)
        self._ending.pop(transport, None)
        self._silent.pop(transport, None)
        self._rejected.pop(transport, None)

    def _reject(self, transport: asyncio.Transport) -> None:
        self._counts.connections_rejected += 1
        self._rejected[transport] = None
        if len(self._rejected) > MAX_REJECTED:
            oldest = next(iter(self._rejected))
            del self._rejected[oldest]
            oldest.abort()

    def _displace(self, candidates: dict[asyncio.Transport, None]) -> bool:
        if not candidates:
            return False
        transport = next(iter(candidates))
        self.closed(transport)
        self._counts.connections_displaced += 1
        transport.abort()
        return True

    def __repr__(self) -> str:
        return f"<ConnectionBudget {len(self._open)} connections, {self.http_connections} of them HTTP>"
