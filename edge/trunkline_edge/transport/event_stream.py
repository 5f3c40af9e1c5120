"""One event stream on one TCP connection: an HTTP response without an end, for those who only listen."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus

import h11
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame, ServerFrame
from trunkline_runtime.refusals import closing_frame, refusal_of

from trunkline_edge import http_errors
from trunkline_edge.core.counters import CLIENT_BROKE_PROTOCOL, CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.core.encoding import encoded
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.dialect import ConnectRequest, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.http_errors import ErrorResponse
from trunkline_edge.transport.client_transport import ClientTransport
from trunkline_edge.transport.connection_handler import ConnectionHandler

#: What a client may send after its request, to no effect.
MAX_SURPLUS_BYTES = 64 * 1024

_HEAD = (
    "HTTP/1.1 200 OK",
    "content-type: text/event-stream",
    "cache-control: no-store",
    # Asks nginx and its like to pass on what comes as it comes.
    "x-accel-buffering: no",
    # Without a length and without chunks: the body ends with the connection.
    "connection: close",
)


class EventStreamTransport(ClientTransport):
    """Answers one GET with what the core has for its client, as bytes that are a codec's own."""

    __slots__ = (
        "_comes_back",
        "_found",
        "_has_asked",
        "_is_head",
        "_shaking",
        "_surplus_bytes",
        "_tenant",
    )

    def __init__(self, host: ConnectionHandler, transport: asyncio.Transport, found: RouteMatch) -> None:
        super().__init__(host, transport)
        self._found = found
        self._has_asked = False
        self._is_head = False
        #: The client goes on by itself where it was. Should it be told a status, it would give up.
        self._comes_back = False
        #: Nothing was written yet.
        self._shaking = True
        self._surplus_bytes = 0
        #: What the client wants to connect to; empty as long as that is not known.
        self._tenant = ""
        _limit_silence(transport, 2 * host.settings.heartbeat_s)

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        """The port hands over the whole head; whatever comes later says nothing."""
        if self._has_asked:
            self._surplus_bytes += len(data)
            if self._surplus_bytes > MAX_SURPLUS_BYTES:
                self._part(CLIENT_BROKE_PROTOCOL)
                self.transport.abort()
            return
        self._has_asked = True
        try:
            request = _request(data)
            self._is_head = request.method == b"HEAD"
            if request.method != b"GET":
                path = request.target.partition(b"?")[0].decode("ascii")
                raise catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed="GET")
            if not self._host.takes_handshakes:
                raise catalogue.OVERLOADED.refused(problem="too many handshakes")
            headers = _headers(request)
            query = read_query(request.target.partition(b"?")[2].decode("ascii"))
            self.asked_by(headers)
            self._comes_back = "last-event-id" in headers
            self._host.shaking(self)
            self._connect(query, headers)
        except Refused as reason:
            self.refuse(reason)
        self._host.settle()

    def _connect(self, query: list[tuple[str, str]], headers: dict[str, str]) -> None:
        tenants = self._host.tenants
        asked = ConnectRequest(self._found.parameters, query, headers, None, tenants, self.is_local)
        wish = self._found.dialect.connect(asked)
        self._tenant = wish.opened.address.tenant
        self._host.open(self, wish)

    def eof_received(self) -> bool:
        """The client sends no more, and so it has left: to go on listening it need say nothing."""
        self._part(CLIENT_LEFT)
        self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, by whatever cause."""
        self._stop_waiting()
        self._part(CLIENT_LOST)

    # What the shell asks for

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if self._shaking:
            self._has_begun()
            data = "\r\n".join((*_HEAD, *self._for_pages(), "\r\n")).encode() + data
        if data:
            self.transport.write(data)

    def refuse(self, reason: Refused) -> None:
        """See ClientTransport."""
        if not self._is_to_go_on(reason.entry.close_code):
            self._respond(http_errors.error_response(reason))
            return
        closing = closing_frame(reason)
        self.write(encoded(self._found.dialect.rejection_codec, ServerFrame(closing=closing)))
        self.close(closing.code, closing.reason)

    def refuse_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        """See ClientTransport."""
        if not self._shaking or self._is_to_go_on(closing.code):
            return False
        self._respond(http_errors.error_response(refusal_of(closing)))
        return True

    def _is_to_go_on(self, close_code: int) -> bool:
        """The client is better told when to try again by an event than by a status.

        But not with the token that has expired.
        """
        expired = close_code == catalogue.TOKEN_EXPIRED.close_code
        return self._comes_back and 0 < close_code < 4500 and not expired

    def _for_pages(self) -> list[str]:
        """What lets a web page read the response."""
        allowed = self._host.allows_origin(self._tenant, self.origin)
        if allowed in ("", "*"):
            return [f"access-control-allow-origin: {allowed}"] if allowed else []
        return [f"access-control-allow-origin: {allowed}", "vary: origin"]

    def _respond(self, refusal: ErrorResponse) -> None:
        """Answer by a status, as something is refused."""
        self._has_begun()
        status, headers, body = refusal
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            head.append("allow: GET")
        head += [f"{name}: {value}" for name, value in headers.items()]
        head += [*self._for_pages(), f"content-type: {http_errors.JSON}", f"content-length: {len(body)}"]
        head += ["connection: close", "\r\n"]
        self.transport.write("\r\n".join(head).encode() + (b"" if self._is_head else body))
        self.close(0, "")

    def _has_begun(self) -> None:
        self._shaking = False
        self._host.handshakes.pop(self, None)

    def ping(self) -> None:
        """Write the codec's heartbeat; a client that reads it is alive."""
        if self.connection is not None and not self.buffered:
            self.connection.silent_rounds = 0

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport. Neither code nor reason is told but by what was written."""
        self.transport.close()
        self._finish()

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport: its client says nothing."""

    def frames_in(self, data: bytes) -> int:
        """See ClientTransport."""
        return data.count(b"\n\n")


def _headers(request: h11.Request) -> dict[str, str]:
    """By lower-case name. Raises Refused INVALID_ARGUMENT where they announce a body."""
    headers: dict[str, str] = {}
    for name, value in request.headers:
        headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise catalogue.INVALID_ARGUMENT.refused(field="body", problem="an event stream takes none")
    return headers


def _request(head: bytes) -> h11.Request:
    """The request in a whole head. Raises Refused."""
    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(head)
        request = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise catalogue.INVALID_ARGUMENT.refused(field="request", problem=str(error)) from None
    assert isinstance(request, h11.Request)
    return request


def _limit_silence(transport: asyncio.Transport, limit_s: int) -> None:
    """Have the kernel give up a peer that acknowledges nothing for so long, such as one that has vanished."""
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_s * 1000)
