"""WebSockets to an edge."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from trunkline_client.http_refusal import refusal_from_http
from trunkline_client.settings import ClientSettings

PROTOCOL = Subprotocol("trunkline.v1.proto")


class EdgeSocket(ClientConnection):
    """A WebSocket that records when it last received anything, control frames included."""

    heard_at: float = 0.0
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.clock()
        super().data_received(data)


def connect_url(url: str, query: Mapping[str, str]) -> str:
    """The URL to connect to: the edge's, with the default path if it has none, and the non-empty query."""
    scheme, netloc, path, given, _ = urlsplit(url)
    path = path if path.strip("/") else "/v1/connect"
    # A colon needs no escape in a query, and `person:alice` stays readable in logs.
    added = urlencode({name: value for name, value in query.items() if value}, quote_via=quote, safe=":")
    return urlunsplit((scheme, netloc, path, "&".join(filter(None, (given, added))), ""))


async def connect_socket(
    url: str, settings: ClientSettings, clock: Callable[[], float], token: str = ""
) -> EdgeSocket:
    """Opens a WebSocket. The token goes in a header, which logs of URLs do not contain.

    Raises Refused if the edge answers with an HTTP error, and OSError or TimeoutError if the
    server does not answer, or is no WebSocket server.
    """
    try:
        socket = await connect(
            url,
            subprotocols=[PROTOCOL],
            compression=None,
            proxy=None,
            max_size=settings.max_frame_bytes,
            open_timeout=settings.attempt_timeout_s,
            close_timeout=settings.close_timeout_s,
            ping_interval=None,  # the transport has a heartbeat of its own
            additional_headers=_headers(settings.headers, token),
            ssl=settings.ssl if urlsplit(url).scheme == "wss" else None,
            create_connection=EdgeSocket,
        )
    except InvalidStatus as error:
        raise refusal_from_http(error.response) from None
    except InvalidHandshake as error:
        raise ConnectionError(f"the server does not speak {PROTOCOL}: {error}") from None
    assert isinstance(socket, EdgeSocket)
    if socket.subprotocol != PROTOCOL:
        socket.transport.abort()
        raise ConnectionError(f"the server does not speak {PROTOCOL}")
    socket.clock = clock
    socket.heard_at = clock()
    return socket


def _headers(headers: Mapping[str, str], token: str) -> Mapping[str, str]:
    if not token:
        return headers
    others = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return others | {"Authorization": f"Bearer {token}"}
