"""Every route and socket of an edge refuses the page of another site, and callers behind a silent proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import product
from typing import NamedTuple

import httpx
import pytest
from starlette.routing import Route
from trunkline.v1.access_pb2 import SCOPE_ADMIN
from trunkline_edge.http.bindings import bindings
from trunkline_edge.http.dialect_routes import PrefixRoute
from trunkline_edge.http.router_client import RouterClient
from trunkline_edge.http.server import make_app
from trunkline_edge.http.transcoding import Transcoder
from trunkline_runtime.router_addresses import RouterAddresses

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    ScriptedRouter,
    running_edge,
    running_router,
)
from tests.support.declared_tenants import policy
from tests.support.patience import under_load

#: Routes that tell nothing about a tenant and do nothing for one.
OPEN_TO_ALL = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
VALUES = {"tenant": "t", "agent": "a", "platform": "web", "pipeline": "p", "message_id": "m@t"}
VALUES |= {"session_type": "person", "bot": "p"}

PAGE = "https://evil.example"
FOREIGN: dict[str, dict[str, str]] = {
    "page of another site": {"origin": PAGE},
    "sandboxed page": {"origin": "null"},
    "image on another site": {"sec-fetch-site": "cross-site"},
    "rebound name": {"host": "evil.example:8080"},
    "rebound name with its origin": {"host": "evil.example", "origin": "http://evil.example"},
    "proxy that names itself": {"via": "1.1 proxy"},
    "proxy that names its client": {"x-real-ip": "192.0.2.1"},
}
#: Those in a browser on this machine, for which the tenant is open.
PAGES = {"page of another site", "sandboxed page", "image on another site"}
#: A token of another system's, which some dialects ignore, proves nothing.
WORTHLESS = {"authorization": "Bearer abc", "x-api-key": "abc"}


#: Session of a visitor.
SESSION = "session_id=3c2081f7-64d3-4b13-9daf-e2df9d593861"
#: Files that are the same for everybody.
PUBLIC_FILES = {"/api/v1/embed/logo", f"/api/v1/embed/p/widget.js?{SESSION}"}


class Asked(NamedTuple):
    """A request that a caller on this machine may make; `needs_key` if only with a key."""

    method: str
    path: str
    needs_key: bool = False
    #: The request opens a connection, so that the router must answer.
    connects: bool = False
    kind: str = "application/json"


def filled(template: str) -> str:
    """A path in which every parameter has a value of tenant `t`."""
    segments = template.split("/")
    for index, segment in enumerate(segments):
        name, brace, verb = segment.removeprefix("{").partition("}")
        if brace:
            value = VALUES.get(name.partition("=")[0].rpartition(".")[2], "x")
            segments[index] = value + verb
    return "/".join(segments)


def http_requests(edge: Edge) -> Iterator[Asked]:
    for binding in bindings():
        template = binding.template.replace("{address.tenant}", "{tenant}")
        yield Asked(binding.http_method, filled(template), binding.scope >= SCOPE_ADMIN)
    for dialect in edge.runtime.registry.dialects:
        for route in dialect.routes:
            query = f"?{SESSION}" if "/embed/{bot}/" in route.path.text else ""
            yield Asked(route.method, filled(route.path.text) + query, kind=route.body_type)
        for path in dialect.event_stream_paths:
            yield Asked("GET", f"{path.text}?{QUERY}", connects=True)
        for path in dialect.engine_io_paths:
            yield Asked("GET", f"{path.text}?EIO=4&transport=polling&api_key=t:a", connects=True)
        for exchange in dialect.exchanges:
            yield Asked(exchange.method, filled(exchange.path.text), connects=True)


def refusals_of(asked: Asked) -> tuple[int, ...]:
    """Statuses of a refusal: a bot is not there for callers that its tenant is not open to."""
    return (401, 403, 404) if asked.path.startswith("/api/v1/embed/") else (401, 403)


def socket_paths(edge: Edge) -> Iterator[str]:
    for dialect in edge.runtime.registry.dialects:
        for path in dialect.websocket_paths:
            query = {"/v1/connect": f"?{QUERY}", "/ws": "?api_key=t:a", "/ws/": "?api_key=t:a"}
            query["/api/v1/embed/{bot}/ws/connect"] = f"?{SESSION}"
            yield filled(path.text) + query.get(path.text, "?")
        for path in dialect.engine_io_paths:
            yield f"{path.text}?EIO=4&transport=websocket&api_key=t:a"


@pytest.fixture
async def linked() -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    router = ScriptedRouter()
    router.policies = [policy("t", pipelines=["p"], default_agent="a")]
    # Dialects await a token in the first frame where one is needed.
    short = {"handshake_timeout_s": under_load(0.3)}
    async with running_router(router=router), running_edge(router.address, **short) as edge:
        link = await router.link()
        await edge.until(lambda: edge.runtime.tenants.are_known)
        yield edge, link


async def test_there_are_no_other_routes(linked: tuple[Edge, ScriptedLink]) -> None:
    """A new kind of route must be added to the tests here."""
    edge, _ = linked
    dialects = edge.runtime.registry.dialects
    paths = {route.path.text for dialect in dialects for route in dialect.routes}
    # These answer that WebSockets are served here.
    paths |= {path.text for dialect in dialects for path in dialect.websocket_paths}
    router = RouterClient(RouterAddresses("127.0.0.1:1"))
    for route in make_app(edge.runtime, router).routes:
        # A prefix only has its own form of "not found".
        if not isinstance(route, (Transcoder, PrefixRoute)):
            assert isinstance(route, Route)
            assert route.path in OPEN_TO_ALL | paths
    await router.close()


async def test_every_http_route_refuses_them(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    requests = [asked for asked in http_requests(edge) if asked.path not in PUBLIC_FILES]
    assert len(requests) > 40
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        for asked in requests:
            url = f"http://{edge.address}{asked.path}"
            body = b"{}" if asked.method in ("POST", "PATCH") else b""
            kind = {"content-type": asked.kind} if body else {}
            for name, headers in FOREIGN.items():
                attempts = [headers | kind]
                if asked.path.startswith("/api/") and name in PAGES:
                    attempts.append(headers | kind | WORTHLESS)
                for sent in attempts:
                    answer = await http.request(asked.method, url, headers=sent, content=body)
                    assert answer.status_code in refusals_of(asked), (asked, name, answer.text)
            if asked.needs_key:
                answer = await http.request(asked.method, url, headers=kind, content=body)
                assert answer.status_code == 401, asked
            if asked.method in ("POST", "PATCH", "PUT"):
                for unasked in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                    for content in (body, b"") if unasked != asked.kind else ():
                        form = {"content-type": unasked} | (
                            {"x-api-key": "tl_1_x"} if asked.needs_key else {}
                        )
                        answer = await http.request(asked.method, url, headers=form, content=content)
                        assert answer.status_code == 415, (asked, unasked, answer.text)
    assert link.entries.empty()


async def test_every_http_route_serves_this_machine(linked: tuple[Edge, ScriptedLink]) -> None:
    """So the refusals above are for what the callers differ in."""
    edge, _ = linked
    local = {"origin": "http://localhost:3000", "sec-fetch-site": "cross-site"}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        for asked in http_requests(edge):
            if asked.needs_key or asked.connects:
                continue
            url = f"http://{edge.address}{asked.path}"
            for headers in ({}, local, {"host": "localhost"}):
                body = b"{}" if asked.method in ("POST", "PATCH") else b""
                kind = {"content-type": asked.kind} if body else {}
                answer = await http.request(asked.method, url, headers=headers | kind, content=body)
                assert answer.status_code not in (401, 403, 405, 415), (asked, headers, answer.text)


async def test_every_socket_refuses_them(linked: tuple[Edge, ScriptedLink]) -> None:
    edge, link = linked
    paths = list(socket_paths(edge))
    assert len(paths) >= 6
    for path in paths:
        attempts = list(product(FOREIGN.values(), ("", "&token=abc")))
        answers = await asyncio.gather(*(refused(edge, path + query, headers) for headers, query in attempts))
        for attempt, answer in zip(attempts, answers, strict=True):
            assert answer in ("401", "403") or "error" in answer, (path, attempt, answer)
        assert link.entries.empty(), path
        await accepted(edge, link, path)


@pytest.mark.parametrize("path", ["/v1/tenants/t/stats", f"/v1/events?{QUERY}", f"/v1/connect?{QUERY}"])
async def test_the_host_of_a_whole_url_counts(linked: tuple[Edge, ScriptedLink], path: str) -> None:
    edge, link = linked
    for host in ("localhost", "evil.example"):
        reader, writer = await edge.raw()
        request = handshake(edge, f"http://evil.example:8080{path}", {"host": host})
        if not path.startswith("/v1/connect"):
            request = request.replace(b"upgrade: websocket\r\nconnection: Upgrade\r\n", b"")
        writer.write(request)
        line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        assert line.split()[1] == b"401"
    assert link.entries.empty()


async def test_a_token_of_another_system_is_ignored_by_dialects_and_refused_by_the_native_protocol(
    linked: tuple[Edge, ScriptedLink],
) -> None:
    edge, link = linked
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        for asked in http_requests(edge):
            if asked.needs_key:
                continue
            body = b"{}" if asked.method in ("POST", "PATCH") else b""
            kind = {"content-type": asked.kind} if body else {}
            token = {"authorization": "Bearer abc"}
            url = f"http://{edge.address}{asked.path}"
            if asked.path.startswith("/api/"):
                answer = await http.request(asked.method, url, headers=token | kind, content=body)
                assert answer.status_code not in (401, 403), (asked, answer.text)
            elif asked.path.startswith("/v1/events"):
                assert (await http.get(url, headers=token)).status_code == 401
    for path in socket_paths(edge):
        if path.startswith("/v1/connect"):
            assert await refused(edge, f"{path}&token=abc", {}) == "401"
        else:
            await accepted(edge, link, f"{path}&token=abc")


def handshake(edge: Edge, path: str, headers: dict[str, str]) -> bytes:
    named = {"host": edge.address, "upgrade": "websocket", "connection": "Upgrade"} | headers
    named |= {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


async def refused(edge: Edge, path: str, headers: dict[str, str]) -> str:
    """Connect a WebSocket that must be refused; return the status, or the last frame."""
    reader, writer = await edge.raw()
    writer.write(handshake(edge, path, headers))
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ")[1].decode()
        return (await reader.read(1 << 16)).decode("latin-1") if status == "101" else status


async def accepted(edge: Edge, link: ScriptedLink, path: str) -> None:
    """Connect a WebSocket from a page of this machine, up to where the router accepts it."""
    _, writer = await edge.raw()
    writer.write(handshake(edge, path, {"origin": "http://localhost:3000"}))
    await link.next("opened")
    writer.close()
    await link.next("closed")
