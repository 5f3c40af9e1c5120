"""Isolation: two tenants with equal names perform any operations, and neither notices the other.

While one tenant acts, nothing that the other can see may change, and the other may receive nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.v1.access_pb2 import SCOPE_OPERATOR, requires
from trunkline_edge.dialects.dialect import JSON, DialectRoute
from trunkline_edge.dialects.registry import DIALECTS

from tests.e2e.client_frames import FRAMES, KINDS, encoded, frame_of
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S
from tests.e2e.operator_client import OperatorClient
from tests.e2e.raw_connections import RawConnection
from tests.e2e.rpc_requests import HTTP, METHODS, REQUESTS, STREAMS, CallContext, call_by_grpc, call_by_http
from tests.e2e.twin_tenants import AGENT, CODECS, PLATFORM, ROUTER, TwinTenant

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long

_numbers = itertools.count(1)
#: Timeouts long enough that nothing ends by itself.
ENV = {"TRUNKLINE_TENANTS": "", "TRUNKLINE_REPLY_LEASE_S": "600", "TRUNKLINE_DELIVERY_LEASE_S": "600"}

#: Target of an operation, always with the tenant's own credentials: itself; the other tenant by name; or
#: itself with ids of the other tenant, which it could only guess.
Aim = Literal["own", "other", "mixed"]
AIMS: tuple[Aim, ...] = ("own", "other", "mixed")

_DIALECTS = {made.name: made for made in (make(lambda: None) for make in DIALECTS)}  # type: ignore[arg-type,return-value]
ROUTES: dict[str, DialectRoute] = {
    f"{route.method} {route.path.text}": route for made in _DIALECTS.values() for route in made.routes
}
EXCHANGES = {
    f"{route.method} {route.path.text}": route for made in _DIALECTS.values() for route in made.exchanges
}
#: Dialect of visitors, whom any tenant's bots admit without credentials.
_PUBLIC = "langbot.embed"
#: Operations after which a tenant must reconnect.
_DISCONNECTS = {"CloseConnections", "SuspendTenant", "RevokeTokens", ROUTER}
#: Error codes for requests that touch another tenant or lack a scope.
_REFUSED = {"FORBIDDEN", "UNAUTHORIZED"}


class Operation(NamedTuple):
    """Operation of a client or a backend."""

    kind: Literal["rpc", "http", "frame", "connect", "route", "exchange"]
    name: str
    aim: Aim
    #: Codec of frames: `native json` or `native proto`.
    codec: str = ""


def operations() -> list[Operation]:
    """Return all operations."""
    found = [Operation("rpc", name, aim) for name in REQUESTS | STREAMS for aim in AIMS]
    found += [Operation("http", name, aim) for name in REQUESTS if name in HTTP for aim in AIMS]
    found += [
        Operation("frame", kind, aim, codec)
        for kind in FRAMES
        for aim in ("own", "mixed")
        for codec in CODECS[:2]
    ]
    found += [Operation("connect", codec, "own") for codec in CODECS]
    found += [Operation("connect", codec, "other") for codec in CODECS if codec != _PUBLIC]
    found += [Operation("route", route, "own") for route in ROUTES]
    found += [Operation("route", name, "other") for name, route in ROUTES.items() if _names_tenant(route)]
    found += [Operation("exchange", name, aim) for name in EXCHANGES for aim in ("own", "other")]
    return found


def _names_tenant(route: DialectRoute) -> bool:
    """Whether a caller can address another tenant, and may not."""
    return "{" in route.path.text and route not in _DIALECTS[_PUBLIC].routes


def test_every_rpc_frame_and_dialect_is_covered() -> None:
    assert METHODS.keys() == REQUESTS.keys() | STREAMS.keys()
    assert set(HTTP) - {"WatchConnections"} == {o.name for o in operations() if o.kind == "http"}
    assert set(KINDS) == set(FRAMES)
    connecting = {
        made.name
        for made in _DIALECTS.values()
        if made.websocket_paths or made.event_stream_paths or made.engine_io_paths
    }
    suffixes = re.compile(" (json|proto|router)$")
    assert {suffixes.sub("", name) for name in CODECS} == connecting


class World:
    """Fleet, and the two tenants of one example."""

    def __init__(self, fleet: Fleet) -> None:
        self.operator = OperatorClient(fleet.router.address, fleet.operator_key, fleet.edges)
        self.operator_metadata = [("authorization", f"Bearer {fleet.operator_key}")]
        self.edges = fleet.edges
        base = f"http://{fleet.edges[0].address}"
        self.router = grpc.insecure_channel(fleet.router.address)
        self.http = httpx.Client(base_url=base, timeout=TIMEOUT_S, trust_env=False)
        self.sides: list[TwinTenant] = []
        self._views: list[dict[str, str]] = [{}, {}]

    def close(self) -> None:
        self.http.close()
        self.router.close()
        self.operator.channel.close()

    async def begin(self) -> None:
        """Create two tenants."""
        number = next(_numbers)
        self.sides = [
            TwinTenant(f"{name}-{number}", self.operator, self.edges) for name in ("alpha", "omega")
        ]
        self._views = [{}, {}]
        for side in self.sides:
            await side.begin()
        for side in self.sides:
            await side.fence()

    async def end(self) -> None:
        for side in self.sides:
            await side.end()

    async def step(self, actor: int, operation: Operation) -> None:
        """Let one tenant act and check that the other does not notice."""
        by, other = self.sides[actor], self.sides[1 - actor]
        before = self._views[1 - actor] or other.view()
        self._views[actor] = {}
        outcome = await getattr(self, f"_{operation.kind}")(operation, by, other)
        assert other.words not in outcome, (operation, outcome)
        await other.assert_nothing_received()
        after = self._views[1 - actor] = other.view()
        changed = {question: (before[question], after[question]) for question in before}
        changed = {question: both for question, both in changed.items() if both[0] != both[1]}
        assert not changed, (operation, changed)
        for connection in by.connections.values():
            assert not any(other.words.encode() in frame for frame in connection.frames), operation
        await self._restore(operation, by)

    async def _restore(self, operation: Operation, by: TwinTenant) -> None:
        """Recreate everything that the next step needs."""
        name = operation.name
        if operation.aim == "own" and operation.kind in ("rpc", "http"):
            if name == "SuspendTenant":
                self.operator.resume(by.name)
            if name == "RevokeApiKey":
                by.new_spare()
            if name == "DeleteTenant":
                await by.disconnect()
                await by.begin()
        closes = (
            operation.kind in ("rpc", "http", "connect") and operation.aim != "other" and name in _DISCONNECTS
        )
        if closes or any(connection.is_closed for connection in by.connections.values()):
            await by.disconnect()
            await by.connect()
        if operation.aim != "other":
            await by.create_messages()
        await by.fence()

    # Operations

    async def _rpc(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        name = operation.name
        asked, metadata = self._asked(operation, by, other)
        request = (REQUESTS | STREAMS)[name](asked)
        code, answer = call_by_grpc(self.router, name, request, metadata)
        return self._looked_at(operation, code, answer)

    async def _http(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        asked, metadata = self._asked(operation, by, other)
        code, answer = call_by_http(self.http, operation.name, REQUESTS[operation.name](asked), metadata)
        return self._looked_at(operation, code, answer)

    def _asked(
        self, operation: Operation, by: TwinTenant, other: TwinTenant
    ) -> tuple[CallContext, list[tuple[str, str]]]:
        tenant = other.name if operation.aim == "other" else by.name
        ids = by if operation.aim == "own" else other
        for_operators = METHODS[operation.name].GetOptions().Extensions[requires] == SCOPE_OPERATOR
        as_operator = for_operators and operation.aim == "own"
        return CallContext(tenant, ids, by), self.operator_metadata if as_operator else by.metadata

    def _looked_at(self, operation: Operation, code: str, answer: str) -> str:
        name = operation.name
        for_operators = METHODS[name].GetOptions().Extensions[requires] == SCOPE_OPERATOR
        if operation.aim == "own" and name != "Link":
            assert not code, (operation, code, answer)
        elif operation.aim == "other" or for_operators or name == "Link":
            assert code in _REFUSED, (operation, code, answer)
        return "" if name == "ListTenants" else answer

    async def _frame(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        kind, codec = operation.name, operation.codec
        of = by if operation.aim == "own" else other
        ident = f"f{next(_numbers)}."
        frame = encoded(frame_of(kind, by, of, ident), codec)
        if kind == "resume":
            connection = by.connection(codec)
            connection.url += "&resume=frame"
            await connection.open(first=frame)
            await self._is_answered(connection, by, codec)
            await connection.close()
            return str(connection.frames)
        connection = by.connections[codec]
        if kind == "unsubscribe":
            before = f"s{next(_numbers)}."
            await connection.send(encoded(frame_of("subscribe", by, by, before), codec))
            await connection.wait_for(before)
        await connection.send(frame)
        if kind == "disconnect":
            await connection.close()
            return str(connection.frames)
        if kind not in ("signal", "read", "delivered"):
            await connection.wait_for(ident)
            answers = [str(each) for each in connection.frames if ident.encode() in each]
            assert operation.aim != "own" or not any("error" in each for each in answers), (
                operation,
                answers,
            )
        await self._is_answered(connection, by, codec)
        if kind == "auth" and operation.aim == "mixed":
            assert any(b"UNAUTHORIZED" in each for each in connection.frames)
        return str(connection.frames)

    async def _is_answered(self, connection: RawConnection, by: TwinTenant, codec: str) -> None:
        """Wait until the router has processed all sent frames."""
        ident = f"h{next(_numbers)}."
        await connection.send(encoded(frame_of("history", by, by, ident), codec))
        await connection.wait_for(ident)

    async def _connect(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        codec = operation.name
        if operation.aim == "other":
            connection = await by.connection(codec, tenant=other.name, pipeline=other.pipeline).open()
            await connection.wait_closed()
            assert connection.status in (0, 401, 403)
            await connection.close()
            return str(connection.frames)
        connection = await by.connection(codec).open()
        assert not connection.is_closed, (operation, connection.status, connection.frames)
        ident = f"c{next(_numbers)}."
        if codec == "native proto":
            await connection.send(encoded(frame_of("message", by, by, ident), codec))
            await connection.wait_for(ident)
        elif codec not in ("native events", ROUTER):
            await connection.send(by.words_in(codec, ident))
            await connection.wait_for(ident)
        await connection.close()
        return str(connection.frames)

    async def _route(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        route = ROUTES[operation.name]
        of = by if operation.aim == "own" else other
        named = {
            "tenant": of.name,
            "platform": PLATFORM,
            "agent": AGENT,
            "pipeline": AGENT if of is by else other.pipeline,
            "session_type": "group",
            "message_id": f"{of.message_id}@{of.name}",
            "bot": of.bot,
            "file": f"{of.upload_key}.png",
        }
        path = route.path.text.format_map(named)
        body: dict[str, Any] = {}
        if route.method == "POST" and route.body_type == JSON:
            body["json"] = {"message": by.words, "feedback_type": 1, "token": "of a visitor"}
        elif route.method == "POST":
            body["files"] = {"file": ("a.png", by.words.encode())}
        query = {"session_id": by.session_id} if route in _DIALECTS[_PUBLIC].routes else {}
        headers = {"authorization": f"Bearer {by.secret}"}
        response = self.http.request(route.method, path, params=query, headers=headers, **body)
        if operation.aim == "own":
            assert response.status_code == 200, (operation, response.text)
        elif not path.endswith("/flush"):
            assert response.status_code in (401, 403, 404), (operation, response.text)
        return response.text

    async def _exchange(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        """Use a chat; of a stream, which waits for a reply, read the beginning."""
        method, path = operation.name.split()
        of = by if operation.aim == "own" else other
        chat = f"chat-{next(_numbers)}"
        # A cancel always names a message of the other tenant.
        named = {"tenant": of.name, "completion": f"chatcmpl-{other.message_id}"}
        path = path.format_map(named | {"agent": AGENT, "model": AGENT, "chat": chat})
        said = {"id": "m", "role": "user", "parts": [{"type": "text", "text": by.words}]}
        completion = {"model": AGENT, "stream": True, "messages": [{"role": "user", "content": by.words}]}
        body = {"id": chat, "message": said, **completion} if method == "POST" else None
        headers = {"authorization": f"Bearer {by.secret}", "x-conversation-id": chat}
        with self.http.stream(method, path, json=body, headers=headers) as response:
            text = next(response.iter_text(), "")
        is_unknown = operation.aim == "other" or path.endswith("/cancel")
        expected = (401, 403, 404) if is_unknown else (200, 204)
        assert response.status_code in expected, (operation, text)
        return text


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("two"), edges=2, **ENV) as started:
        yield started


@pytest.fixture(scope="module")
def world(fleet: Fleet) -> Iterator[World]:
    made = World(fleet)
    yield made
    made.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


async def example(world: World, steps: list[tuple[int, Operation]]) -> None:
    """Run these steps with two new tenants."""
    await world.begin()
    try:
        for actor, operation in steps:
            await world.step(actor, operation)
    finally:
        await world.end()


def test_no_operation_of_one_tenant_is_noticed_by_the_other(world: World, runner: asyncio.Runner) -> None:
    runner.run(example(world, [(0, operation) for operation in operations()]))


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(operations())), min_size=5, max_size=20))
def test_no_sequence_of_operations_is_noticed_by_the_other_tenant(
    world: World, runner: asyncio.Runner, steps: list[tuple[int, Operation]]
) -> None:
    runner.run(example(world, steps))
