"""What a dialect is: where its clients connect, how they speak, and the HTTP routes beside that."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from google.protobuf.message import Message
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline_runtime.call_metadata import bearer_token

from trunkline_edge.dialects.codec import Codec
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.tenant_policies import TenantPolicies

#: Begins a subprotocol that is a token.
OFFERED = "bearer."

#: The time, with its zone.
Clock = Callable[[], datetime]


#: Reads what a client must say before it is connected.
FirstFrameReader = Callable[[bytes, bool], "ConnectPlan"]


class ConnectRequest(NamedTuple):
    """A client's wish to connect, as its HTTP request has it."""

    #: What stands in place of the path's parameters, decoded.
    parameters: Mapping[str, str]
    #: The query's, in order, decoded; a name may come twice.
    query: Sequence[tuple[str, str]]
    #: By lower-case name; of a header that comes twice the first.
    headers: Mapping[str, str]
    #: What was agreed on, where the dialect has subprotocols and the client asked for one of them.
    subprotocol: str | None
    tenants: TenantPolicies
    #: From the edge's own machine, and not through a proxy.
    is_local: bool = False

    def parameter(self, name: str) -> str:
        """The first of this name in the query; empty where there is none."""
        return next((value for key, value in self.query if key == name), "")

    @property
    def token(self) -> str:
        """The token in the query, the header or among the subprotocols; empty where there is none."""
        return self.parameter("token") or bearer(self.headers) or _offered(self.headers)

    def needs_token(self, tenant: str) -> bool:
        """Whether a client of this tenant must show one, if it is a tenant."""
        return self.tenants.policy(tenant) is not None and not self.tenants.is_open(tenant, self.is_local)


@dataclass
class ConnectPlan:
    """How a client is to be connected."""

    codec: Codec
    #: What the request says; the shell adds id, time and place.
    opened: ConnectionOpened
    #: What proves that the client may connect, and as whom.
    token: str = ""
    #: The user in `opened` is whom the client says it is; otherwise the dialect's own name for it.
    names_user: bool = True
    #: The window in which deltas are to be joined; None for the edge's own.
    rollup_ms: int | None = None
    #: The dialect's clients send frames larger than native ones do.
    large_frames: bool = False
    #: The handshake is answered at once, and the client must say something first: brings the wish further.
    #: Raises Refused like Dialect.connect, and FrameRefused.
    first: FirstFrameReader | None = None


class HttpRequest(NamedTuple):
    """A request to one of a dialect's routes."""

    parameters: Mapping[str, str]
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body: bytes
    tenants: TenantPolicies
    is_local: bool = False


class HttpReply(NamedTuple):
    """The answer to it."""

    status: int
    #: What JSON can hold.
    body: Any


class RouterCall(NamedTuple):
    """An RPC that is to be made for it. It belongs to the tenant that its request names."""

    #: Such as `HistoryService.ListMessages`.
    rpc: str
    request: Message


class CallRefused(Exception):
    """The RPC was refused, by the router or because the request has no right to it; `str()` says why."""

    def __init__(self, code: str, text: str, http_status: int) -> None:
        super().__init__(text)
        #: The entry of the catalogue.
        self.code = code
        self.http_status = http_status


#: Yields calls, is sent their responses, or thrown CallRefused, and returns the reply.
Handling = Generator[RouterCall, Any, HttpReply]


class Route(NamedTuple):
    """An HTTP route of a dialect; `handle` is pure, what it needs done it yields."""

    method: str
    path: Path
    handle: Callable[[HttpRequest], Handling]
    #: How a request is refused of which nothing is looked at; None for the contract's own form.
    refused: Callable[[CallRefused], HttpReply] | None = None


@dataclass(frozen=True)
class Dialect:
    """One way of speaking to an edge. To add one: a file beside this one, and a line in `registry`.

    `connect` says how a client is to be connected. It raises Refused, of an entry with a close code,
    where it may not; the client is told in the words of `refusing`.
    """

    name: str
    connect: Callable[[ConnectRequest], ConnectPlan]
    #: Tells those who are refused before they have a codec of their own.
    refusing: Codec
    #: `connect` asks what tenants there are, so it has to wait until that is known.
    asks_tenants: bool = False
    #: Paths of its WebSockets.
    sockets: Sequence[Path] = ()
    #: Paths of its event streams: the same over plain HTTP, to the client only.
    streams: Sequence[Path] = ()
    #: In order of preference.
    subprotocols: Sequence[str] = ()
    routes: Sequence[Route] = ()
    #: The path parameter that holds a name reserved by its tenant, if paths do not name the tenant itself:
    #: see `reserved_for` in tenant.proto.
    reserved_parameter: str = ""


def read_query(text: str) -> list[tuple[str, str]]:
    """A query's parameters, in order, decoded. Raises Refused INVALID_ADDRESS where it cannot be read."""
    try:
        # What was no UTF-8 when it came is none now.
        text.encode()
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError as error:
        raise catalogue.INVALID_ADDRESS.refused(problem=f"the query cannot be read: {error}") from None


def _offered(headers: Mapping[str, str]) -> str:
    """The token that a browser offers as a subprotocol, the only header that a page can set."""
    names = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
    return next((name[len(OFFERED) :] for name in names if name.startswith(OFFERED)), "")


def bearer(headers: Mapping[str, str]) -> str:
    """The token in an `Authorization` header; empty where there is none."""
    return bearer_token(headers.get("authorization", "")) or ""
