"""HTTP routes of dialects: handlers yield RPCs, and the edge makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from starlette.applications import Starlette
from trunkline.v1 import catalogue
from trunkline.v1.history_service_pb2 import GetMessageRequest, ListMessagesRequest, ListMessagesResponse
from trunkline.v1.presence_service_pb2 import GetStatsRequest, GetStatsResponse
from trunkline_edge.dialects import registry
from trunkline_edge.dialects.dialect import (
    CallRefused,
    Dialect,
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
)
from trunkline_edge.dialects.native.handshake import DEFAULT, connect
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.registry import DialectRegistry
from trunkline_edge.dialects.tenant_policies import TenantPolicies
from trunkline_edge.http import body_reader
from trunkline_edge.http.body_reader import BodyReader
from trunkline_edge.http.caller_metadata import CallerMetadata
from trunkline_edge.http.dialect_routes import DialectRoutes
from trunkline_edge.http.fair_worker import FairWorker
from trunkline_edge.http.router_client import CallFailed
from trunkline_edge.transport.body_budget import BodyBudget
from trunkline_runtime.refusals import to_status

from tests.edge.http.token_admission import token_callers
from tests.support.declared_tenants import policy

JSON = {"content-type": "application/json"}
Handle = Callable[[HttpRequest], RouteSteps]

TENANTS = TenantPolicies([policy("closed", tokens=["t1"]), policy("t")])


class Calls:
    """A router client with scripted responses, which records its calls."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Message]] = []
        self.metadata: list[dict[str, str]] = []
        self.answers: dict[str, Message | CallFailed] = {}

    async def unary(
        self, method: MethodDescriptor, request: Message, *, metadata: Sequence[tuple[str, str]]
    ) -> Message:
        self.made.append((method.name, request))
        self.metadata.append(dict(metadata))
        answer = self.answers[method.name]
        if isinstance(answer, CallFailed):
            raise answer
        return answer


class Served:
    """An edge with a single route."""

    def __init__(
        self,
        handle: Handle,
        method: str = "POST",
        path: str = "/old/{room}",
        refused: Callable[[CallRefused], HttpReply] | None = None,
    ) -> None:
        self.calls = Calls()
        route = DialectRoute(method, Path(path), handle, refused)
        self.dialect = Dialect("old", connect, DEFAULT, routes=(route,))

    async def ask(self, path: str = "/old/a", method: str = "POST", **more: Any) -> httpx.Response:
        registered = DialectRegistry(lambda: datetime.now(UTC))
        access = CallerMetadata(TENANTS)
        callers = token_callers(TENANTS)
        routes = DialectRoutes(
            registered,
            TENANTS,
            self.calls,  # type: ignore[arg-type]
            access,
            callers,
            BodyReader(),
            FairWorker(),
        ).routes()
        transport = httpx.ASGITransport(Starlette(routes=routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, **more)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    def begin(handle: Handle, *more: Any) -> Served:
        served = Served(handle, *more)
        monkeypatch.setattr(registry, "DIALECTS", (lambda clock: served.dialect,))
        return served

    return begin


def echo(request: HttpRequest) -> RouteSteps:
    """Reply with the request, without any RPC."""
    body = {"room": request.parameters["room"], "query": list(request.query), "body": request.body.decode()}
    return HttpReply(200, body | {"header": request.headers.get("x-one", "")})
    yield


def stats(tenant: str) -> RouterCall:
    return RouterCall("PresenceService.GetStats", GetStatsRequest(tenant=tenant))


def messages(tenant: str) -> RouterCall:
    request = ListMessagesRequest()
    request.address.tenant = tenant
    return RouterCall("HistoryService.ListMessages", request)


async def test_a_handling_is_given_the_request_as_it_came(serve: Callable[..., Served]) -> None:
    served = serve(echo)
    headers = [("X-One", "1"), ("X-One", "2"), ("Content-Type", "application/json")]
    answer = await served.ask("/old/a%2Fb%20%E4%BD%A0?q=1&q=%26&r", content="{", headers=headers)
    query = [["q", "1"], ["q", "&"], ["r", ""]]
    assert answer.json() == {"room": "a/b 你", "query": query, "body": "{", "header": "1"}
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize("path", ["/old/", "/old//", "/old/a/", "/old/%ff", "/old/a/b", "/older/a"])
async def test_other_paths_are_not_found(path: str, serve: Callable[..., Served]) -> None:
    assert (await serve(echo).ask(path)).status_code == 404


async def test_another_method_is_refused(serve: Callable[..., Served]) -> None:
    answer = await serve(echo).ask(method="PUT")
    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")
    assert answer.json()["details"][0]["reason"] == "METHOD_NOT_ALLOWED"


async def test_a_query_that_is_not_utf8_is_refused(serve: Callable[..., Served]) -> None:
    answer = await serve(echo).ask("/old/a?b=%ff")
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "INVALID_ADDRESS")


async def test_a_body_that_is_too_large_is_refused(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_reader, "MAX_BODY_BYTES", 10)
    served = serve(echo)
    assert (await served.ask(content=b"x" * 10, headers=JSON)).status_code == 200
    assert (await served.ask(content=b"x" * 11, headers=JSON)).status_code == 413


async def test_several_calls_are_made_one_after_another(serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        counted = yield stats("t")
        listed = yield messages("t")
        return HttpReply(201, [counted.connections, listed.more, len(listed.messages)])

    served = serve(handle)
    served.calls.answers = {
        "GetStats": GetStatsResponse(connections=7),
        "ListMessages": ListMessagesResponse(more=True),
    }
    answer = await served.ask()
    assert (answer.status_code, answer.json()) == (201, [7, True, 0])
    assert [name for name, _ in served.calls.made] == ["GetStats", "ListMessages"]
    assert served.calls.made[1][1] == messages("t").request


async def test_a_handling_may_go_on_after_a_refusal(serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        refusals = []
        for call in (messages("t"), stats("t")):
            try:
                yield call
            except CallRefused as refused:
                refusals.append([refused.code, refused.http_status, str(refused)])
        return HttpReply(200, refusals)

    served = serve(handle)
    served.calls.answers = {
        "GetStats": GetStatsResponse(),
        "ListMessages": CallFailed(to_status(catalogue.MESSAGE_NOT_FOUND.refused(message_id="m"))),
    }
    [refused] = (await served.ask()).json()
    assert refused == ["MESSAGE_NOT_FOUND", 404, catalogue.MESSAGE_NOT_FOUND.sentence(message_id="m")]
    assert [name for name, _ in served.calls.made] == ["ListMessages", "GetStats"]


async def test_the_router_receives_the_callers_credentials(serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        if "x-api-key" in request.headers:
            yield stats("closed")
            yield stats("other")
        return HttpReply(200, request.is_local)

    served = serve(handle)
    served.calls.answers["GetStats"] = GetStatsResponse()
    answer = await served.ask(headers={"x-api-key": "t1", "x-real-ip": "192.0.2.1"})
    assert answer.json() is False
    where = {"trunkline-remote-ip": "127.0.0.1", "trunkline-forwarded": "1"}
    # A tenant's shared secret is no credential for another tenant.
    assert served.calls.metadata == [
        {"trunkline-acting-for": "closed", "trunkline-by-secret": "1"} | where,
        {"authorization": "Bearer t1"} | where,
    ]
    assert (await served.ask()).json() is True


@pytest.mark.parametrize("own_words", [False, True])
async def test_no_body_is_taken_from_those_who_may_not_ask(
    own_words: bool, serve: Callable[..., Served]
) -> None:
    taken: list[str] = []

    def handle(request: HttpRequest) -> RouteSteps:
        taken.append("asked")
        return HttpReply(200, None)
        yield

    async def body() -> AsyncIterator[bytes]:
        taken.append("body")
        yield b"{}"

    def refused(reason: CallRefused) -> HttpReply:
        return HttpReply(reason.http_status, {"detail": reason.code})

    served = serve(handle, "POST", "/old/{tenant}", refused if own_words else None)
    answer = await served.ask("/old/closed", content=body())
    assert (answer.status_code, taken) == (401, [])
    assert answer.json() == {"detail": "UNAUTHORIZED"} if own_words else answer.json()["code"] == 16
    shown = {"x-api-key": "t1"} | JSON
    assert (await served.ask("/old/closed", content=body(), headers=shown)).status_code == 200
    assert taken == ["body", "asked"]


@pytest.mark.parametrize("anew", [False, True])
async def test_a_refusal_that_is_left_at_that_is_the_answer(anew: bool, serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        try:
            yield RouterCall("HistoryService.GetMessage", GetMessageRequest(tenant="t"))
        except CallRefused as refused:
            if anew:
                raise CallRefused(refused.code, "said otherwise", 418) from None
            raise
        return HttpReply(200, None)

    served = serve(handle)
    served.calls.answers["GetMessage"] = CallFailed(to_status(catalogue.ROUTER_UNAVAILABLE.refused()))
    answer = await served.ask()
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (503, "ROUTER_UNAVAILABLE")
    assert answer.headers["retry-after"]


async def test_a_handling_may_refuse_by_itself(serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        yield stats("t")
        raise catalogue.INVALID_ARGUMENT.refused(field="limit", problem="must be a number")

    served = serve(handle)
    served.calls.answers["GetStats"] = GetStatsResponse()
    answer = await served.ask()
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "INVALID_ARGUMENT")


async def test_a_handling_that_breaks_is_an_internal_error_and_no_more(
    serve: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        yield stats("t")
        raise KeyError("its own mistake")

    served = serve(handle)
    served.calls.answers["GetStats"] = GetStatsResponse()
    answer = await served.ask()
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (500, "INTERNAL")
    assert "its own mistake" not in answer.text
    assert "its own mistake" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "share"), [("POST", "closed"), ("GET", "")])
async def test_the_body_of_a_get_takes_nothing_of_the_tenants_share(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, method: str, share: str
) -> None:
    counted: set[str] = set()

    def reserve(budget: BodyBudget, share: str, size: int, buffered: int = 0) -> None:
        counted.add(share)

    def handle(request: HttpRequest) -> RouteSteps:
        return HttpReply(200, {})
        yield

    monkeypatch.setattr(BodyBudget, "reserve", reserve)
    credentials = {"x-api-key": "t1"} if method == "POST" else {}
    await serve(handle, method, "/old/{tenant}").ask(
        "/old/closed", method, content=b"{}", headers=JSON | credentials
    )
    assert counted == {share}


async def test_a_dialects_form_of_a_refusal_keeps_its_headers(serve: Callable[..., Served]) -> None:
    def handle(request: HttpRequest) -> RouteSteps:
        yield stats("t")
        raise AssertionError

    served = serve(
        handle, "POST", "/old/{room}", lambda refused: HttpReply(refused.http_status, {"oops": str(refused)})
    )
    served.calls.answers["GetStats"] = CallFailed(to_status(catalogue.ROUTER_UNAVAILABLE.refused()))
    answer = await served.ask(json={})
    assert (answer.status_code, answer.json()) == (503, {"oops": catalogue.ROUTER_UNAVAILABLE.text})
    assert answer.headers["retry-after"]
    # So do refusals before the handler.
    answer = await served.ask(content=b"x", headers={"content-type": "text/plain"})
    assert (answer.status_code, list(answer.json())) == (415, ["oops"])
    answer = await served.ask(method="PUT")
    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")
