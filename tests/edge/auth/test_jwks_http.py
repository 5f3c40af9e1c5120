"""Fetching JWK Sets from a real server."""

from __future__ import annotations

import asyncio
import gzip
import time
from contextlib import aclosing

import pytest
from trunkline_edge.auth.jwks import FetchFailed, JwksCache
from trunkline_edge.auth.jwks_http import JwksHttpClient
from trunkline_edge.auth.key_set import MAX_SET_BYTES

from tests.support.jwks_server import PATIENCE_S, JwksServer, running_jwks_server

pytestmark = pytest.mark.io


async def problem(url: str, timeout_s: float = PATIENCE_S) -> str:
    """The text of the FetchFailed."""
    async with aclosing(JwksHttpClient(timeout_s)) as fetch:
        with pytest.raises(FetchFailed) as caught:
            await asyncio.wait_for(fetch(url), PATIENCE_S)
        return str(caught.value)


async def test_a_set_is_read_as_it_is() -> None:
    async with running_jwks_server() as server, aclosing(JwksHttpClient()) as fetch:
        server.says(b'{"keys":[]}')
        assert await fetch(server.url()) == b'{"keys":[]}'
        assert await fetch(server.url("/other?x=1")) == b'{"keys":[]}'
        assert [request.partition(" HTTP")[0] for request in server.requests] == [
            "GET /keys",
            "GET /other?x=1",
        ]
        await fetch.aclose()
        assert await fetch(server.url()) == b'{"keys":[]}'


async def test_a_set_of_the_largest_size_is_read() -> None:
    async with running_jwks_server() as server, aclosing(JwksHttpClient()) as fetch:
        server.says(b" " * MAX_SET_BYTES)
        assert len(await fetch(server.url())) == MAX_SET_BYTES
        server.says(b" " * (MAX_SET_BYTES + 1))
        assert "more than" in await problem(server.url())


async def test_an_endless_body_is_read_up_to_the_limit_of_a_set() -> None:
    async with running_jwks_server() as server:
        server.hangs = True
        server.answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b" " * (MAX_SET_BYTES * 4)
        assert "more than" in await problem(server.url())


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_server_that_is_too_slow_is_left(answer: bytes) -> None:
    async with running_jwks_server() as server:
        server.hangs = True
        server.answer = answer
        began = time.monotonic()
        assert "within 0.2 s" in await problem(server.url(), 0.2)
        assert time.monotonic() - began < PATIENCE_S / 2


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "where", ["/keys", "file:///etc/passwd", "http://169.254.169.254/", "https://id.example/"]
)
async def test_a_redirect_is_not_followed(status: str, where: str) -> None:
    async with running_jwks_server() as server:
        server.says(b"", status, f"location: {where}\r\n")
        assert f"has status {status[:3]}" in await problem(server.url())
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "status", ["204 None", "206 Part", "401 No", "404 Not found", "500 Broken", "503 Later"]
)
async def test_any_status_but_ok_is_a_failure(status: str) -> None:
    async with running_jwks_server() as server:
        server.says(b'{"keys":[]}' if status[0] != "2" else b"", status)
        assert f"has status {status[:3]}" in await problem(server.url())


async def test_a_compressed_body_is_not_unpacked() -> None:
    async with running_jwks_server() as server:
        server.says(gzip.compress(bytes(10_000_000)), headers="content-encoding: gzip\r\n")
        assert "compressed" in await problem(server.url())
        assert "accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"])
async def test_a_response_that_is_not_http_is_a_failure(answer: bytes) -> None:
    async with running_jwks_server() as server:
        server.answer = answer
        assert "RemoteProtocolError" in await problem(server.url())


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with running_jwks_server() as server:
        url = server.url()
    assert "ConnectError" in await problem(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost.example/keys",
        "http://127.0.0.1@id.example/keys",
        "http://192.0.2.1/keys",
        "http://0.0.0.0/keys",
        "http://[::]/keys",
        "ftp://127.0.0.1/keys",
        "file:///etc/passwd",
        "ws://127.0.0.1/keys",
        "unix:///tmp/socket",
        "//127.0.0.1/keys",
        "/keys",
        "keys",
        "",
        "https://",
        "http:///keys",
        "https://a:b:c/",
        "https://a\n.example/",
    ],
)
async def test_only_https_is_read_or_http_of_this_machine(url: str) -> None:
    assert "URL" in await problem(url)


async def test_nothing_is_taken_from_the_environment_and_no_cookie_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with running_jwks_server() as server, aclosing(JwksHttpClient()) as fetch:
        server.says(b"{}", headers="set-cookie: a=b; path=/\r\n")
        for _ in range(2):
            assert await fetch(server.url()) == b"{}"
        assert not any("cookie" in request.lower() for request in server.requests)
        assert not any("authorization" in request.lower() for request in server.requests)


async def test_a_cache_reads_from_a_server_and_outlives_its_failures() -> None:
    now = [0.0]
    async with running_jwks_server() as server, aclosing(JwksHttpClient()) as fetch:
        cache = JwksCache(fetch, lambda: now[0])
        cache.use({server.url()})

        async def refreshed(server: JwksServer) -> list[str]:
            now[0] += 10_000
            keys = await asyncio.wait_for(cache.refresh(server.url()), PATIENCE_S)
            return [key.kid for key in keys]

        server.says(b'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"' + X + b'"}]}')
        assert await refreshed(server) == ["a"]
        server.says(b"<html>")
        assert await refreshed(server) == ["a"]
        server.says(b'{"keys":[]}')
        assert await refreshed(server) == []


#: The example in RFC 8037, A.2.
X = b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
