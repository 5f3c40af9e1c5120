"""The interface of dialects: connect paths, codecs, and the HTTP routes beside them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from google.protobuf.message import Message
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_runtime.call_metadata import bearer_token

from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.tenant_policies import TenantPolicies

JSON = "application/json"

#: Prefix of a WebSocket subprotocol that carries a token.
BEARER_SUBPROTOCOL = "bearer."

#: Returns the current time, with its zone.
Clock = Callable[[], datetime]


#: Completes a plan with the client's first message: payload, and whether it is binary.
FirstFrameReader = Callable[[bytes, bool], "ConnectPlan"]


class ConnectRequest(NamedTuple):
    """A client's request to connect, read from its HTTP request."""

    #: Values of the path's parameters, decoded.
    parameters: Mapping[str, str]
    #: The query's parameters, decoded and in order; a name may occur twice.
    query: Sequence[tuple[str, str]]
    #: By lower-case name; of a repeated header the first.
    headers: Mapping[str, str]
    #: The negotiated subprotocol; None if the dialect has none or the client asked for none.
    subprotocol: str | None
    tenants: TenantPolicies
    #: The client is on the edge's own machine; see RequestSource.
    is_local: bool = False

    def parameter(self, name: str) -> str:
        """The first query parameter of this name; empty if absent."""
        return first_value(self.query, name)

    @property
    def token(self) -> str:
        """The token in the query, the header or the offered subprotocols; empty for none."""
        return self.parameter("token") or bearer(self.headers) or _offered_token(self.headers)

    def needs_token(self, tenant: str) -> bool:
        """Whether the tenant exists and requires a token of this client."""
        return self.tenants.policy(tenant) is not None and not self.tenants.is_open(tenant, self.is_local)


@dataclass
class ConnectPlan:
    """The codec, address and credentials to connect a client with."""

    codec: Codec
    #: The request's part; the runtime adds connection id, time and remote address.
    opened: ConnectionOpened
    #: Empty if the client sent none.
    token: str = ""
    #: The client chose the user in `opened`; otherwise the dialect derived it.
    names_user: bool = True
    #: The window in which deltas are joined; None for the edge's own.
    rollup_ms: int | None = None
    #: The token may be another system's, which the dialect's clients send in any case. On a tenant that is
    #: open to the client, a token that is not valid is then ignored.
    may_be_foreign: bool = False
    #: The dialect admits the client to this one conversation without proof. `opened` names the user.
    is_visitor: bool = False
    #: The dialect's clients send larger frames than native ones.
    large_frames: bool = False
    #: One of the chats of the client's user, who is not known before the token is verified. Admission then
    #: sets the conversation; see `trunkline_edge.auth.user_chats`. Empty for none.
    chat: str = ""
    #: Completes the plan with the client's first message; the handshake is accepted before. Raises Refused
    #: like Dialect.connect, and FrameRefused. None if the plan is complete.
    read_first: FirstFrameReader | None = None


class HttpRequest(NamedTuple):
    """A request to one of a dialect's routes."""

    parameters: Mapping[str, str]
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body: bytes
    tenants: TenantPolicies
    #: The caller is on the edge's own machine; see RequestSource.
    is_local: bool = False

    def parameter(self, name: str) -> str:
        """The first query parameter of this name; empty if absent."""
        return first_value(self.query, name)

    @property
    def key(self) -> str:
        """The token, secret or API key in the headers; empty for none."""
        return bearer(self.headers) or self.headers.get("x-api-key", "")


class HttpReply(NamedTuple):
    """The response to an HttpRequest."""

    status: int
    #: Any value that JSON can represent; text or bytes of another `media_type`. Ignored for
    #: status 204.
    body: Any
    media_type: str = JSON
    #: Further headers of the response.
    headers: Mapping[str, str] = MappingProxyType({})


class RouterCall(NamedTuple):
    """An RPC to make for a route. It belongs to the tenant that its request names."""

    #: Service and method, such as `HistoryService.ListMessages`.
    rpc: str
    request: Message


class CallRefused(Exception):
    """The router, or the edge on its behalf, refused an RPC; `str()` says why."""

    def __init__(self, code: str, text: str, http_status: int) -> None:
        super().__init__(text)
        #: The catalogue's code.
        self.code = code
        self.http_status = http_status


#: A route's handler, running: yields RPCs, receives each response or CallRefused, and returns the reply.
RouteSteps = Generator[RouterCall, Any, HttpReply]


def tenant_in_path(request: HttpRequest) -> str:
    """The tenant that a path names by its parameter `tenant`."""
    return request.parameters.get("tenant", "")


def accept_any(request: HttpRequest) -> None:
    """The check of routes that refuse nothing before they have the body."""


def nobody_is_a_visitor(request: HttpRequest) -> bool:
    """The rule of routes that admit callers by the tenant's rules only."""
    return False


class DialectRoute(NamedTuple):
    """An HTTP route of a dialect; its handler is pure, and yields the RPCs to make."""

    method: str
    path: Path
    handle: Callable[[HttpRequest], RouteSteps]
    #: Renders a refusal that comes before `handle`; None for the contract's own form.
    render_refusal: Callable[[CallRefused], HttpReply] | None = None
    #: The tenant that path and headers identify, before anything is verified; empty for none. The request has
    #: neither query nor body yet.
    tenant_of: Callable[[HttpRequest], str] = tenant_in_path
    #: Whether the caller of such a request is a visitor, whom the edge vouches for without proof: the handler
    #: alone decides what a visitor may do.
    is_visitor: Callable[[HttpRequest], bool] = nobody_is_a_visitor
    #: Type of the bodies.
    body_type: str = JSON
    #: Raises Refused to refuse a request before its body is read.
    check_head: Callable[[HttpRequest], None] = accept_any


class ExchangeRoute(NamedTuple):
    """An HTTP route whose requests are answered over a connection of the core, perhaps by a stream of events.

    `connect` reads a whole request and returns a plan whose codec is a new Exchange, with its first frames in
    `requests`. It raises Refused; a refusal then, or before anything was written, is an HTTP status. Unlike a
    DialectRoute it needs no API key: a client's token is verified as on a WebSocket.
    """

    method: str
    path: Path
    connect: Callable[[HttpRequest], ConnectPlan]
    #: Renders every refusal; None for the contract's own form. The headers for the status are added.
    render_refusal: Callable[[CallRefused], HttpReply] | None = None
    #: The tenant, as far as the path or the headers identify it: its pages may read the response, and its
    #: share of memory buffers the body. The request has no body yet.
    tenant_of: Callable[[HttpRequest], str] = tenant_in_path
    #: Bodies may have the size of large frames.
    large_body: bool = False


def exchanges_only(request: ConnectRequest) -> ConnectPlan:
    """The `connect` of dialects whose clients connect by exchanges only."""
    raise AssertionError("the dialect has no other connections")


@dataclass(frozen=True)
class Dialect:
    """A protocol that clients connect by. To add one, add its folder, and a line in `registry`.

    `connect` plans a client's connection. It raises Refused, with an entry that has a close code, to reject
    the client; `rejection_codec` encodes that.
    """

    #: Unique. Fields of TenantSettings with the option `reserved_for` refer to it.
    name: str
    connect: Callable[[ConnectRequest], ConnectPlan]
    #: Encodes the refusal of clients that have no codec yet.
    rejection_codec: Codec
    #: `connect` queries tenants, so it waits until the policies are known.
    needs_tenants: bool = False
    #: Paths of WebSockets.
    websocket_paths: Sequence[Path] = ()
    #: Paths of event streams: the protocol over plain HTTP, to the client only.
    event_stream_paths: Sequence[Path] = ()
    #: Paths of Engine.IO sessions, by long polling and by WebSocket; the codec's framing is PACKETS.
    engine_io_paths: Sequence[Path] = ()
    #: In order of preference.
    subprotocols: Sequence[str] = ()
    routes: Sequence[DialectRoute] = ()
    exchanges: Sequence[ExchangeRoute] = ()
    #: Prefixes of HTTP paths that are the dialect's, whether it has a route there or not; the longest wins.
    http_prefixes: Sequence[str] = ()
    #: Renders refusals at these paths and those of its WebSockets; None for the contract's own form.
    render_refusal: Callable[[CallRefused], HttpReply] | None = None


def read_query(text: str) -> list[tuple[str, str]]:
    """A query's parameters, decoded and in order. Raises Refused INVALID_ADDRESS for a malformed query."""
    try:
        # Surrogates stand for bytes of the request that were not UTF-8.
        text.encode()
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError as error:
        raise catalogue.INVALID_ADDRESS.refused(problem=f"the query cannot be read: {error}") from None


def first_value(query: Sequence[tuple[str, str]], name: str) -> str:
    """The first parameter of this name in a query; empty if absent."""
    return next((value for key, value in query if key == name), "")


def _offered_token(headers: Mapping[str, str]) -> str:
    """The token offered as a subprotocol, in the only header that a web page can set on a WebSocket."""
    names = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
    prefix = BEARER_SUBPROTOCOL
    return next((name[len(prefix) :] for name in names if name.startswith(prefix)), "")


def bearer(headers: Mapping[str, str]) -> str:
    """The token in an `Authorization` header; empty for none."""
    return bearer_token(headers.get("authorization", "")) or ""
