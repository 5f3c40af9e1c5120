"""Sessions of Engine.IO, found by the secret name that each request of one carries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused

from trunkline_edge.auth.caller_policy import check_page
from trunkline_edge.auth.request_source import RequestSource
from trunkline_edge.dialects.dialect import first_value
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.transport.client_transport import ClientTransport

#: Headers and query parameters that identify a client.
_CREDENTIAL_HEADERS = ("authorization", "x-apikey")
_CREDENTIAL_PARAMETERS = ("api_key", "token")


class Credentials(NamedTuple):
    """The credentials in a request, by name. Clients of long polling send them in the first one only."""

    values: Mapping[str, str]

    @classmethod
    def read(cls, headers: Mapping[str, str], query: Sequence[tuple[str, str]]) -> Credentials:
        """Read a request's credentials."""
        values = {name: headers[name] for name in _CREDENTIAL_HEADERS if name in headers}
        return cls(values | {name: value for name, value in query if name in _CREDENTIAL_PARAMETERS})

    def allow(self, later: Credentials) -> bool:
        """Whether a later request names no others."""
        return all(self.values.get(name) == value for name, value in later.values.items())


class SessionRequest(NamedTuple):
    """The parts of a request that concern every session."""

    headers: Mapping[str, str]
    query: Sequence[tuple[str, str]]
    source: RequestSource

    @property
    def sid(self) -> str:
        """The session that the request belongs to; empty for a new one."""
        return first_value(self.query, "sid")

    @property
    def credentials(self) -> Credentials:
        """The request's credentials."""
        return Credentials.read(self.headers, self.query)


class EngineIoSession(ClientTransport):
    """One client's session without a WebSocket, to which it may move."""

    def __init__(self, remote_ip: str, sid: str, request: SessionRequest, max_bytes: int) -> None:
        super().__init__(remote_ip)
        #: Names the session to requests, and must not be guessed.
        self.sid = sid
        #: The first request.
        self.request = request
        self.source = request.source
        #: Largest packet that the client may send.
        self.max_bytes = max_bytes
        #: The client has sent its first message.
        self.is_released = False

    @property
    def tenant(self) -> str:
        """The tenant of the session's client; empty until it is admitted, and once it is gone."""
        return self.connection.tenant if self.connection is not None else ""

    @property
    @abstractmethod
    def may_move(self) -> bool:
        """The session is open, and has handled all that its client has sent."""

    @abstractmethod
    async def poll(self) -> bytes:
        """Wait for packets and return them as a payload.

        An earlier poll that still waits is answered by nothing. Raises Refused if the session has ended.
        """

    @abstractmethod
    async def receive(self, payload: bytes) -> None:
        """Handle the packets of a payload; returns once they are, which backpressure may delay.

        Raises Refused for an invalid payload, and while another is being handled.
        """

    @abstractmethod
    def pause_polling(self, *, is_paused: bool) -> None:
        """Answer polls by nothing, so that the client can end its last one before it changes transports."""

    @abstractmethod
    def take_outgoing(self) -> bytes:
        """Remove and return the packets that no poll has fetched."""

    @abstractmethod
    def hand_over(self) -> None:
        """End the session without its connection, which has moved to a WebSocket."""


class EngineIoSessions:
    """Sessions by the secret names that their clients were given. Each has a handshake or a connection, whose
    numbers the core bounds, or was closed at most CLOSE_TIMEOUT_S ago.
    """

    def __init__(self, tenants: TenantPolicies) -> None:
        self._tenants = tenants
        self._by_sid: dict[str, EngineIoSession] = {}

    def add(self, session: EngineIoSession) -> None:
        """Add a session whose client is admitted."""
        self._by_sid[session.sid] = session

    def remove(self, session: EngineIoSession) -> None:
        """Forget a session. Idempotent."""
        self._by_sid.pop(session.sid, None)

    def find(self, request: SessionRequest) -> EngineIoSession:
        """The session of a request.

        Raises Refused INVALID_ADDRESS if there is none, FORBIDDEN if the request comes from a page of another
        origin than the session's first one, or has other credentials, and ORIGIN_FORBIDDEN if the first one
        named no origin and this one's page may not connect to the tenant.
        """
        session = self._by_sid.get(request.sid)
        if session is None:
            raise no_session()
        first, origin = session.request, request.source.origin
        is_other_page = origin != first.source.origin and bool(first.source.origin)
        if is_other_page or not first.credentials.allow(request.credentials):
            raise catalogue.FORBIDDEN.refused(problem="the session is another client's")
        if origin and not first.source.origin:
            # Browsers name a page's origin in its POSTs and WebSockets to its own site, but not in its GETs.
            self._check_page(session.tenant, request.source)
        return session

    def _check_page(self, tenant: str, source: RequestSource) -> None:
        policy = self._tenants.policy(tenant)
        if policy is None:
            raise no_session()
        check_page(policy.settings, source, has_proof=False)

    def __len__(self) -> int:
        return len(self._by_sid)


def no_session() -> Refused:
    """The refusal of a request whose session is unknown, or has ended."""
    return catalogue.INVALID_ADDRESS.refused(problem="the sid names no session; connect again")
