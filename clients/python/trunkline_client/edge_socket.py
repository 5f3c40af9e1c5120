"""Making one WebSocket to an edge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from google.protobuf.duration_pb2 import Duration
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.http11 import Response
from websockets.typing import Subprotocol

from trunkline_client.errors import Refused

PROTOCOL = Subprotocol("trunkline.v1.proto")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What may be set about a client, with the bounds of all its queues."""

    #: How long `Client.open` goes on trying; 0 tries once.
    open_timeout_s: float = 10.0
    #: How long one attempt to connect may take.
    attempt_timeout_s: float = 5.0
    #: How long an orderly close may take before the socket is dropped.
    close_timeout_s: float = 1.0
    #: The largest frame that is taken from the edge.
    max_frame_bytes: int = 4 << 20
    #: Events that wait for the application; beyond, nothing is read from the socket.
    inbox_max_items: int = 1000
    inbox_max_bytes: int = 16 << 20
    #: RequestSender that wait for their answer; beyond, the next one waits.
    max_unanswered: int = 256
    #: Bounds of the wait between two attempts to connect.
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0
    #: The window in which the edge joins deltas, 0 to 500; None leaves it to the edge.
    rollup_ms: int | None = None
    #: Headers of the connect request.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: For a wss:// URL; None trusts the authorities that this machine trusts.
    ssl: SSLContext | None = None


class EdgeSocket(ClientConnection):
    """A WebSocket that remembers when it last heard anything, control frames included."""

    heard_at: float = 0.0
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.clock()
        super().data_received(data)


def connect_url(url: str, query: Mapping[str, str]) -> str:
    """The URL to connect to: the edge's, with its path unless it has one, and what is set of the query."""
    scheme, netloc, path, given, _ = urlsplit(url)
    path = path if path.strip("/") else "/v1/connect"
    # A colon needs no escape in a query, and `person:alice` stays readable in logs.
    asked = urlencode({name: value for name, value in query.items() if value}, quote_via=quote, safe=":")
    return urlunsplit((scheme, netloc, path, "&".join(filter(None, (given, asked))), ""))


async def connect_socket(
    url: str, settings: ClientSettings, clock: Callable[[], float], token: str = ""
) -> EdgeSocket:
    """Opens a WebSocket; the token is shown in a header, which no log of URLs has.

    Raises Refused where the edge answers with an HTTP error, and OSError or TimeoutError where nobody
    answers, or not as a WebSocket server does.
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
            ping_interval=None,  # the heartbeat is ours
            additional_headers=_headers(settings.headers, token),
            ssl=settings.ssl if urlsplit(url).scheme == "wss" else None,
            create_connection=EdgeSocket,
        )
    except InvalidStatus as refusal:
        raise refusal_from_http(refusal.response) from None
    except InvalidHandshake as problem:
        raise ConnectionError(f"it does not speak {PROTOCOL}: {problem}") from None
    assert isinstance(socket, EdgeSocket)
    if socket.subprotocol != PROTOCOL:
        socket.transport.abort()
        raise ConnectionError(f"it does not speak {PROTOCOL}")
    socket.clock = clock
    socket.heard_at = clock()
    return socket


def _headers(headers: Mapping[str, str], token: str) -> Mapping[str, str]:
    if not token:
        return headers
    others = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return others | {"Authorization": f"Bearer {token}"}


def refusal_from_http(response: Response) -> Refused:
    """What an HTTP answer other than 101 says; the edge's own have a google.rpc.Status as JSON."""
    told = _json_object(response.body)
    status = response.status_code
    code, retryable, retry_after_ms = f"HTTP_{status}", status >= 500 or status in (408, 429), 0
    listed = told.get("details")
    details = {
        str(detail.get("@type")).rpartition("/")[2]: detail
        for detail in (listed if isinstance(listed, list) else ())
        if isinstance(detail, dict)
    }
    if entry := details.get("google.rpc.ErrorInfo"):
        code = str(entry.get("reason"))
        # An entry that is retryable brings a RetryInfo; so codes newer than this client are understood.
        retry = details.get("google.rpc.RetryInfo")
        retryable = retry is not None
        retry_after_ms = _milliseconds(str((retry or {}).get("retryDelay")))
    message = told.get("message") or f"the edge answered {status} {response.reason_phrase}"
    return Refused(code, str(message), retryable=retryable, retry_after_ms=retry_after_ms)


def _milliseconds(duration: str) -> int:
    """A duration as protobuf's JSON has it, such as `1.5s`; 0 where it cannot be read."""
    parsed = Duration()
    try:
        parsed.FromJsonString(duration)
    except ValueError:
        return 0
    return parsed.ToMilliseconds()


def _json_object(body: bytes | bytearray | None) -> dict[str, Any]:
    try:
        value = json.loads(body or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
