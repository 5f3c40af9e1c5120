"""One HTTP connection, on which a later request may ask for something else than HTTP's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState


class HttpProtocol(H11Protocol):
    """Serves one request, and hands the connection back to the port when the next begins.

    Browsers and proxies take a connection that they have used for some page for an event stream, too.
    """

    def __init__(self, config: Config, state: ServerState, port: Callable[[], asyncio.Protocol]) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._port = port

    def data_received(self, data: bytes) -> None:
        """Some of a request, or the beginning of another one."""
        if self.cycle is None or not self._is_between_requests():
            super().data_received(data)
            return
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        port = self._port()
        self.transport.set_protocol(port)
        port.connection_made(self.transport)
        port.data_received(data)

    def _is_between_requests(self) -> bool:
        parser = self.conn
        return parser.our_state is h11.IDLE and parser.their_state is h11.IDLE and not parser.trailing_data[0]
