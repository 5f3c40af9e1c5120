"""HTTP/1.1 on one connection, which returns to protocol selection between requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState


class HttpProtocol(H11Protocol):
    """Serves one request, and returns the connection to a protocol selector when the next one begins.

    Browsers and proxies reuse a connection for WebSockets and event streams after plain requests.
    """

    def __init__(
        self, config: Config, state: ServerState, make_selector: Callable[[], asyncio.Protocol]
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._make_selector = make_selector

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.cycle is None or not self._is_between_requests():
            super().data_received(data)
            return
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        selector = self._make_selector()
        self.transport.set_protocol(selector)
        selector.connection_made(self.transport)
        selector.data_received(data)

    def _is_between_requests(self) -> bool:
        parser = self.conn
        return parser.our_state is h11.IDLE and parser.their_state is h11.IDLE and not parser.trailing_data[0]
