"""Event streams (server-sent events): an HTTP response without end, for clients that only listen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.refusals import refusal_of

from trunkline_edge import http_errors
from trunkline_edge.auth.cors import preflight_headers
from trunkline_edge.core.counters import CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.dialect import ConnectRequest, read_query
from trunkline_edge.dialects.registry import RouteMatch
from trunkline_edge.http_errors import ErrorResponse
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.request_head import RequestHead, announces_body, decoded_headers
from trunkline_edge.transport.response_protocol import ResponseProtocol, header_lines

_HEAD = (
    "HTTP/1.1 200 OK",
    "content-type: text/event-stream",
    "cache-control: no-store",
    # Disables response buffering in nginx and similar proxies.
    "x-accel-buffering: no",
    # Without length and chunks, the end of the connection ends the body.
    "connection: close",
)


#: The methods of an event stream's path.
ALLOWED = "GET, OPTIONS"


class EventStreamTransport(ResponseProtocol):
    """Answers one GET with events that the codec frames itself."""

    __slots__ = ("_reconnects", "_route")

    def __init__(self, handler: ConnectionHandler, transport: asyncio.Transport, route: RouteMatch) -> None:
        super().__init__(handler, transport)
        self._route = route
        #: The client reconnects by itself, and would give up at an HTTP status.
        self._reconnects = False

    # Events of the transport

    def begin(self, request: RequestHead, surplus: bytes) -> None:
        """Answer the request, behind which the client has sent `surplus` already."""
        self._handler.step(self._read_request, request)
        if surplus:
            self.data_received(surplus)

    def data_received(self, data: bytes) -> None:
        """Ignore what the client sends."""
        self._ignore(data)

    def eof_received(self) -> bool:
        """End the stream, once it is answered: the client has left, as it sends nothing while it listens."""
        if self.handshake is not None:
            self._await_answer()
            return True
        self._gone(CLIENT_LEFT)
        self._await_close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the client: the TCP connection is gone."""
        super().connection_lost(exc)
        self._gone(CLIENT_LOST)

    def _read_request(self, request: RequestHead) -> None:
        try:
            self._is_head = request.method == b"HEAD"
            headers = self._read_headers(decoded_headers(request), request.http_version.decode("ascii"))
            path, _, parameters = request.target.partition(b"?")
            query = read_query(parameters.decode("ascii"))
            # Errors, too, can be read by the tenant's pages.
            self._tenant = dict(reversed(query)).get("tenant", "")
            if request.method == b"OPTIONS":
                policy = self._handler.tenants.policy(self._tenant)
                self._respond(HTTPStatus.NO_CONTENT, preflight_headers(policy, self.source, ALLOWED), b"")
                return
            if request.method != b"GET":
                raise catalogue.METHOD_NOT_ALLOWED.refused(path=path.decode("ascii"), allowed=ALLOWED)
            if not self._handler.make_room_for_handshake():
                raise catalogue.OVERLOADED.refused(problem="too many handshakes")
            if announces_body(request):
                raise catalogue.INVALID_ARGUMENT.refused(field="body", problem="an event stream takes none")
            self._reconnects = "last-event-id" in headers
            self._handler.begin_handshake(self)
            self._connect(query, headers)
        except Refused as reason:
            self.reject(reason)

    def _connect(self, query: list[tuple[str, str]], headers: dict[str, str]) -> None:
        tenants = self._handler.tenants
        request = ConnectRequest(self._route.parameters, query, headers, None, tenants, self.source.is_local)
        plan = self._route.dialect.connect(request)
        self._tenant = plan.opened.address.tenant
        self._handler.connect(self, plan)

    # Calls of the runtime

    def write(self, data: bytes) -> None:
        """See ClientTransport."""
        if not self._wrote_head:
            self._begin_response()
            data = "\r\n".join((*_HEAD, *header_lines(self._cors_headers()), "\r\n")).encode() + data
        if data:
            self.transport.write(data)

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport: the client sends nothing."""

    def reject(self, reason: Refused) -> None:
        """See ClientTransport."""
        if self._expects_event(reason.entry.close_code):
            self._reject_with(self._route.dialect.rejection_codec, reason)
        else:
            self._respond_error(http_errors.error_response(reason))

    def _reject_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        if self._wrote_head or self._expects_event(closing.code):
            return False
        self._respond_error(http_errors.error_response(refusal_of(closing)))
        return True

    def _expects_event(self, close_code: int) -> bool:
        """Return True if an event is to name the time to reconnect: a status would end the client's retries.

        An expired token is rejected by status: the client must not retry with it.
        """
        expired = close_code == catalogue.TOKEN_EXPIRED.close_code
        return self._reconnects and 0 < close_code < 4500 and not expired

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport. Code and reason are not sent, except by what was written."""
        self.transport.close()
        self._await_close()

    # Response

    def _respond_error(self, refusal: ErrorResponse) -> None:
        headers = {**refusal.headers, **self._cors_headers(), "content-type": http_errors.JSON}
        if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["allow"] = ALLOWED
        self._respond(refusal.status, headers, refusal.body)

    def _respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer the request without a stream, and close."""
        self._write_response(status, headers, body)
        self.close(0, "")
