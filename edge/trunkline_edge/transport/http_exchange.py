"""Exchanges: HTTP requests that a connection of the core answers, see `trunkline_edge.dialects.exchange`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_runtime.refusals import refusal_of

from trunkline_edge import http_errors
from trunkline_edge.auth.caller_policy import CONNECT, check_caller
from trunkline_edge.auth.cors import preflight_headers
from trunkline_edge.core.counters import CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.dialect import (
    CallRefused,
    ExchangeRoute,
    HttpReply,
    HttpRequest,
    bearer,
    read_query,
)
from trunkline_edge.dialects.exchange import Exchange
from trunkline_edge.dialects.registry import ExchangeMatch
from trunkline_edge.transport.body_budget import MAX_DROPPED_BYTES
from trunkline_edge.transport.body_type import check_type
from trunkline_edge.transport.connection_handler import ConnectionHandler
from trunkline_edge.transport.lingering_close import close_lingering
from trunkline_edge.transport.request_body import RequestBody
from trunkline_edge.transport.request_head import RequestHead, RequestParser, announces_body, decoded_headers
from trunkline_edge.transport.response_protocol import ResponseProtocol, head_bytes

_STREAM_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    # Disables response buffering in nginx and similar proxies.
    "x-accel-buffering": "no",
    # A body whose last chunk is missing is no complete body, whatever ended the connection.
    "transfer-encoding": "chunked",
}
_LAST_CHUNK = b"0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ExchangeTransport(ResponseProtocol):
    """Reads one request, connects its client, and writes the response that the exchange decides.

    The body must arrive within the time limit of HTTP bodies; from then until the router has taken the
    request, the deadline of handshakes applies. After that the client may wait for long.
    """

    __slots__ = (
        "_body",
        "_body_timer",
        "_exchange",
        "_is_finished",
        "_is_read",
        "_match",
        "_parser",
        "_payload",
        "_request",
        "_route",
    )

    def __init__(
        self,
        handler: ConnectionHandler,
        transport: asyncio.Transport,
        match: ExchangeMatch,
        parser: RequestParser,
    ) -> None:
        super().__init__(handler, transport)
        self._match = match
        self._parser = parser
        self._route: ExchangeRoute | None = None
        self._request: HttpRequest | None = None
        #: None before and after the body is read.
        self._body: RequestBody | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._payload = b""
        self._exchange: Exchange | None = None
        self._is_read = False
        #: The response is complete, or never will be.
        self._is_finished = False

    # Reading

    def begin(self, head: RequestHead, surplus: bytes) -> None:
        """Read the request, behind whose head the client has sent `surplus` already."""
        try:
            self._read_head(head)
        except Refused as reason:
            self._refuse_request(reason)
            return
        if self._body is not None:
            self.data_received(surplus)

    def _read_head(self, head: RequestHead) -> None:
        method = head.method.decode("ascii")
        self._is_head = method == "HEAD"
        headers = self._read_headers(decoded_headers(head), head.http_version.decode("ascii"))
        path, _, parameters = head.target.decode("ascii").partition("?")
        handler, routes = self._handler, self._match.routes
        allowed = ", ".join([*routes, "OPTIONS"])
        route = self._route = routes.get(method)
        query = read_query(parameters)
        request = HttpRequest(
            self._match.parameters, query, headers, b"", handler.tenants, self.source.is_local
        )
        self._request = request
        self._tenant = (route or next(iter(routes.values()))).tenant_of(request)
        if method == "OPTIONS":
            policy = handler.tenants.policy(self._tenant)
            self._respond(HTTPStatus.NO_CONTENT, preflight_headers(policy, self.source, allowed), b"")
            return
        if route is None:
            raise catalogue.METHOD_NOT_ALLOWED.refused(path=path, allowed=allowed)
        if head.http_version != b"1.1":
            # Without chunks the end of the connection would end the body, like a complete one.
            raise catalogue.HTTP_VERSION_UNSUPPORTED.refused(version=head.http_version.decode("ascii"))
        policy = handler.tenants.policy(self._tenant)
        if policy is not None:
            # Strangers are refused before the body is read; admission decides.
            check_caller(policy, self.source, CONNECT, has_proof=bool(bearer(headers)))
        if announces_body(head) or (method != "GET" and "content-type" in headers):
            check_type(headers.get("content-type", ""), headers.get("content-encoding", "identity"))
        self._read_body(headers)

    def _read_body(self, headers: Mapping[str, str]) -> None:
        handler, route, request = self._handler, self._route, self._request
        assert route is not None
        assert request is not None
        settings = handler.settings
        limit = settings.large_frame_bytes if route.large_body else settings.frame_bytes
        length = int(headers.get("content-length", "0")[:12])
        if length > limit:
            raise catalogue.BODY_TOO_LARGE.refused(limit=limit)
        share = handler.body_share(self._tenant, request, self.source) if length else ""
        handler.bodies.check(share, length, length)
        self._body = RequestBody(self._parser, handler.bodies, share, limit)
        loop = asyncio.get_running_loop()
        self._body_timer = loop.call_later(settings.http_timeout_s, self._body_is_late)

    def data_received(self, data: bytes) -> None:
        """Collect the body, then connect; ignore what the client sends behind it."""
        body = self._body
        if body is None:
            self._ignore(data)
            return
        try:
            payload = body.feed(data)
            if payload is None and body.awaits_continue:
                self.transport.write(_CONTINUE)
        except Refused as reason:
            self._refuse_request(reason)
            return
        if payload is not None:
            self._is_read = True
            self._stop_reading()
            self._payload = payload
            self._handler.step(self._connect)

    def _body_is_late(self) -> None:
        limit_s = self._handler.settings.http_timeout_s
        self._refuse_request(catalogue.BODY_TIMEOUT.refused(limit_s=f"{limit_s:g}"))

    def _refuse_request(self, reason: Refused) -> None:
        """Refuse a request that was not read to its end, or cannot be."""
        self._handler.count_refused(reason, self.transport)
        self.reject(reason)

    def _stop_reading(self) -> None:
        """Forget the body, which is complete or not wanted. Idempotent."""
        body, self._body = self._body, None
        if body is not None:
            body.release()
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def eof_received(self) -> bool:
        """Serve a client that ended its side behind its request; one whose body is incomplete has left."""
        if self._body is not None:
            self._leave()
            return False
        # Most clients that end their side have left; those that have not, read what is written.
        if self.handshake is not None:
            self._await_answer()
            return True
        self._leave()
        return False

    def _leave(self) -> None:
        self._stop_reading()
        self._is_finished = True
        self._gone(CLIENT_LEFT)
        self._await_close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the client: the TCP connection is gone. Its reply goes on."""
        super().connection_lost(exc)
        self._stop_reading()
        self._is_finished = True
        self._gone(CLIENT_LOST)

    # Connecting

    def _connect(self) -> None:
        handler = self._handler
        try:
            if not handler.make_room_for_handshake():
                raise catalogue.OVERLOADED.refused(problem="too many handshakes")
            handler.begin_handshake(self)
            if self._match.dialect.needs_tenants:
                handler.when_tenants_known(self, self._plan_connection)
            else:
                self._plan_connection()
        except Refused as reason:
            self.reject(reason)

    def _plan_connection(self) -> None:
        route, request = self._route, self._request
        assert route is not None
        assert request is not None
        try:
            plan = route.connect(request._replace(body=self._payload))
            assert isinstance(plan.codec, Exchange)
            self._exchange = plan.codec
            self._tenant = plan.opened.address.tenant or self._tenant
            self._handler.connect(self, plan)
        except Refused as reason:
            self.reject(reason)

    def admitted(self, frame_bytes: int) -> None:
        """See ClientTransport. The request follows as soon as the router has accepted the connection."""
        payload, self._payload, self._request = self._payload, b"", None
        if len(payload) > frame_bytes:
            self.reject(catalogue.BODY_TOO_LARGE.refused(limit=frame_bytes))
            return
        connection = self.connection
        assert connection is not None
        now = asyncio.get_running_loop().time()
        self._handler.core.client_frames.received(connection, payload, False, now)

    # Calls of the runtime

    def write(self, data: bytes) -> None:
        """See ClientTransport. Nothing is written before the exchange decides on a response."""
        exchange = self._exchange
        if exchange is None or self._is_finished:
            return
        if exchange.answer is not None:
            self._respond_with(exchange.answer, {})
        elif exchange.refused is not None:
            self._refuse(exchange.refused)
        else:
            if data:
                self._write_events(exchange, data)
            if exchange.is_complete:
                self._finish()
            elif exchange.is_broken:
                self._break()
            else:
                self._go_on(exchange)

    def _write_events(self, exchange: Exchange, data: bytes) -> None:
        ends = _LAST_CHUNK if exchange.is_complete else b""
        if not self._wrote_head:
            head = {**_STREAM_HEADERS, **exchange.stream_headers, **self._cors_headers()}
            data = head_bytes(HTTPStatus.OK, head) + data
            self._begin_response()
        self.transport.write(data + ends if ends else data)

    def _go_on(self, exchange: Exchange) -> None:
        if exchange.is_accepted and self.handshake is not None:
            self._answered()
        connection, now = self.connection, asyncio.get_running_loop().time()
        for _ in range(len(exchange.requests)):
            if connection is None or connection.buffered_input:
                # Gone, or over its rate: what is buffered is handled later.
                return
            self._handler.step(self._handler.core.client_frames.received, connection, b"", False, now)

    def reject(self, reason: Refused) -> None:
        """See ClientTransport."""
        if not (self._wrote_head or self._is_finished):
            self._refuse(reason)

    def _reject_by_http(self, codec: Codec, closing: ClosingFrame) -> bool:
        self.reject(refusal_of(closing))
        return True

    def close(self, code: int, reason: str) -> None:
        """See ClientTransport. A response that is not complete is cut off."""
        if not self._is_finished:
            self._break()

    def pause_reading(self) -> None:
        """See ClientTransport: reading goes on, so that the end of the client is noticed."""

    def resume_reading(self) -> None:
        """See ClientTransport."""

    # Response

    def _refuse(self, reason: Refused) -> None:
        """Answer with an HTTP status in the dialect's form."""
        status, headers, body, media_type = http_errors.error_response(reason)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["allow"] = ", ".join([*self._match.routes, "OPTIONS"])
        render = (self._route or self._match.dialect).render_refusal
        if render is None:
            self._respond(status, {**headers, "content-type": media_type}, body)
        else:
            reply = render(CallRefused(reason.entry.code, str(reason), status))
            self._respond_with(reply, headers)

    def _respond_with(self, reply: HttpReply, headers: Mapping[str, str]) -> None:
        body = reply.body
        if reply.media_type == http_errors.JSON:
            body = msgspec.json.encode(body)
        elif isinstance(body, str):
            body = body.encode()
        self._respond(reply.status, {**headers, **reply.headers, "content-type": reply.media_type}, body)

    def _respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer with a whole response, and close."""
        self._write_response(status, {**headers, **self._cors_headers()}, body)
        self._finish()

    def _finish(self) -> None:
        """End the connection once the client has taken the response, which is complete."""
        self._is_finished = True
        self._stop_reading()
        self._gone(catalogue.DISCONNECTED.code)
        if self._is_read:
            self.transport.close()
            self._await_close()
        else:
            # The body may still be on its way, and most clients read the response behind it.
            self._handler.budget.idle(self.transport)
            close_lingering(self.transport, self._handler.settings.http_timeout_s, MAX_DROPPED_BYTES)

    def _break(self) -> None:
        """End the connection without the last chunk, so that no client takes the response for complete."""
        self._is_finished = True
        self._gone(CLIENT_LOST)
        self.transport.abort()
