"""Two tenants do anything at all, with everything of the same name; neither ever notices the other.

While one of them does something, nothing that the other can see may change, and nothing may be said to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Literal, NamedTuple

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.v1.access_pb2 import SCOPE_OPERATOR, requires
from trunkline_edge.dialects.dialect import DialectRoute
from trunkline_edge.dialects.registry import DIALECTS

from tests.e2e.client_frames import FRAMES, KINDS, encoded, frame_of
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import TIMEOUT_S
from tests.e2e.operator_client import OperatorClient
from tests.e2e.raw_connections import RawConnection
from tests.e2e.rpc_requests import HTTP, METHODS, REQUESTS, STREAMS, CallContext, call_by_grpc, call_by_http
from tests.e2e.twin_tenants import AGENT, CODECS, PLATFORM, TwinTenant

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)
#: Nothing ends by itself.
ENV = {"TRUNKLINE_TENANTS": "", "TRUNKLINE_REPLY_LEASE_S": "600", "TRUNKLINE_DELIVERY_LEASE_S": "600"}

#: With its own credentials: for what is its own; for what is the other tenant's, by its name; and for what is
#: the other's by ids that it cannot know, in its own name.
Aim = Literal["own", "other", "mixed"]
AIMS: tuple[Aim, ...] = ("own", "other", "mixed")

_DIALECTS = {made.name: made for made in (make(lambda: None) for make in DIALECTS)}  # type: ignore[arg-type,return-value]
ROUTES: dict[str, DialectRoute] = {
    f"{route.method} {route.path.text}": route for made in _DIALECTS.values() for route in made.routes
}
#: After these a side has to connect anew.
_DISCONNECTS = {"CloseConnections", "SuspendTenant", "RevokeTokens"}
#: What a tenant is told that asks for another's, or for what takes more than it has.
_REFUSED = {"FORBIDDEN", "UNAUTHORIZED"}


class Operation(NamedTuple):
    """Something that a client or a backend can do."""

    kind: Literal["rpc", "http", "frame", "connect", "route"]
    name: str
    aim: Aim
    #: Of frames: `native json` or `native proto`.
    language: str = ""


def operations() -> list[Operation]:
    """All of them."""
    found = [Operation("rpc", name, aim) for name in REQUESTS | STREAMS for aim in AIMS]
    found += [Operation("http", name, aim) for name in REQUESTS if name in HTTP for aim in AIMS]
    found += [
        Operation("frame", kind, aim, language)
        for kind in FRAMES
        for aim in ("own", "mixed")
        for language in CODECS[:2]
    ]
    found += [Operation("connect", language, aim) for language in CODECS for aim in ("own", "other")]
    found += [Operation("route", route, aim) for route in ROUTES for aim in ("own", "other")]
    return found


def test_no_rpc_frame_or_dialect_is_left_out() -> None:
    assert METHODS.keys() == REQUESTS.keys() | STREAMS.keys()
    assert set(HTTP) - {"WatchConnections"} == {o.name for o in operations() if o.kind == "http"}
    assert set(KINDS) == set(FRAMES)
    assert {name.removesuffix(" json").removesuffix(" proto") for name in CODECS} == set(_DIALECTS)


class World:
    """The processes, and the two tenants of one example."""

    def __init__(self, fleet: Fleet) -> None:
        self.operator = OperatorClient(fleet.router.address, fleet.operator_key)
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
        """Two new tenants."""
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
        """One side does something, and the other notices nothing."""
        by, other = self.sides[actor], self.sides[1 - actor]
        before = self._views[1 - actor] or other.view()
        self._views[actor] = {}
        outcome = await getattr(self, f"_{operation.kind}")(operation, by, other)
        assert other.words not in outcome, (operation, outcome)
        await other.told_nothing()
        after = self._views[1 - actor] = other.view()
        changed = {question: (before[question], after[question]) for question in before}
        changed = {question: both for question, both in changed.items() if both[0] != both[1]}
        assert not changed, (operation, changed)
        for ear in by.ears.values():
            assert not any(other.words.encode() in frame for frame in ear.frames), operation
        await self._restore(operation, by)

    async def _restore(self, operation: Operation, by: TwinTenant) -> None:
        """Have everything there again that the next step needs."""
        name = operation.name
        if operation.aim == "own" and operation.kind in ("rpc", "http"):
            if name == "SuspendTenant":
                self.operator.resume(by.name)
            if name == "RevokeApiKey":
                by.new_spare()
            if name == "DeleteTenant":
                await by.disconnect()
                await by.begin()
        closes = operation.kind in ("rpc", "http") and operation.aim != "other" and name in _DISCONNECTS
        if closes or any(ear.is_closed for ear in by.ears.values()):
            await by.disconnect()
            await by.connect()
        if operation.aim != "other":
            await by.say_more()
        await by.fence()

    # What can be done

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
        kind, language = operation.name, operation.language
        of = by if operation.aim == "own" else other
        ident = f"f{next(_numbers)}."
        frame = encoded(frame_of(kind, by, of, ident), language)
        if kind == "resume":
            ear = by.ear(language)
            ear.url += "&resume=frame"
            await ear.open(first=frame)
            await self._is_answered(ear, by, language)
            await ear.close()
            return str(ear.frames)
        ear = by.ears[language]
        if kind == "unsubscribe":
            before = f"s{next(_numbers)}."
            await ear.send(encoded(frame_of("subscribe", by, by, before), language))
            await ear.heard(before)
        await ear.send(frame)
        if kind == "disconnect":
            await ear.close()
            return str(ear.frames)
        if kind not in ("signal", "read", "delivered"):
            await ear.heard(ident)
            answers = [str(each) for each in ear.frames if ident.encode() in each]
            assert operation.aim != "own" or not any("error" in each for each in answers), (
                operation,
                answers,
            )
        await self._is_answered(ear, by, language)
        if kind == "auth" and operation.aim == "mixed":
            assert any(b"UNAUTHORIZED" in each for each in ear.frames)
        return str(ear.frames)

    async def _is_answered(self, ear: RawConnection, by: TwinTenant, language: str) -> None:
        """The router has dealt with all that was sent."""
        ident = f"h{next(_numbers)}."
        await ear.send(encoded(frame_of("history", by, by, ident), language))
        await ear.heard(ident)

    async def _connect(self, operation: Operation, by: TwinTenant, other: TwinTenant) -> str:
        language = operation.name
        if operation.aim == "other":
            ear = await by.ear(language, tenant=other.name, pipeline=other.pipeline).open()
            await ear.ended()
            assert ear.status in (0, 401, 403)
            await ear.close()
            return str(ear.frames)
        ear = await by.ear(language).open()
        assert not ear.is_closed, (operation, ear.status, ear.frames)
        ident = f"c{next(_numbers)}."
        if language == "native proto":
            await ear.send(encoded(frame_of("message", by, by, ident), language))
            await ear.heard(ident)
        elif language != "native events":
            await ear.send(by.words_in(language, ident))
            await ear.heard(ident)
        await ear.close()
        return str(ear.frames)

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
        }
        path = route.path.text.format_map(named)
        headers = {"authorization": f"Bearer {by.secret}"}
        body = json.dumps({"message": by.words}).encode()
        content = body if route.method == "POST" else None
        response = self.http.request(route.method, path, content=content, headers=headers)
        if operation.aim == "own":
            assert response.status_code == 200, (operation, response.text)
        elif not path.endswith("/flush"):
            assert response.status_code in (401, 403, 404), (operation, response.text)
        return response.text


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
    """Two new tenants take these steps."""
    await world.begin()
    try:
        for actor, operation in steps:
            await world.step(actor, operation)
    finally:
        await world.end()


def test_whatever_one_tenant_does_the_other_notices_nothing(world: World, runner: asyncio.Runner) -> None:
    runner.run(example(world, [(0, operation) for operation in operations()]))


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(operations())), min_size=5, max_size=20))
def test_whatever_both_do_in_any_order_neither_notices_the_other(
    world: World, runner: asyncio.Runner, steps: list[tuple[int, Operation]]
) -> None:
    runner.run(example(world, steps))
