"""Addresses to listen on."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError
from trunkline_runtime.listen_address import (
    ListenAddress,
    Listener,
    OptionalTcpListener,
    TcpListener,
    check_target,
)


@pytest.mark.parametrize(
    ("text", "host", "port", "reachable"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1:8080"),
        ("[::1]:8080", "::1", 8080, "[::1]:8080"),
        ("localhost:0", "localhost", 0, "localhost:0"),
        ("0.0.0.0:65535", "0.0.0.0", 65535, "127.0.0.1:65535"),
        ("[::]:80", "::", 80, "[::1]:80"),
        (":80", "", 80, "127.0.0.1:80"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
    ],
)
def test_an_address_is_written_as_in_a_url(text: str, host: str, port: int, reachable: str) -> None:
    address = ListenAddress.parse(text)
    assert (address.host, address.port, address.path) == (host, port, "")
    assert (str(address), address.reachable) == (text, reachable)
    assert TypeAdapter(TcpListener).validate_python(text) == text


@pytest.mark.parametrize("text", ["unix:/run/edge.sock", "unix:///run/edge.sock"])
def test_a_unix_socket_is_for_an_edge_only(text: str) -> None:
    assert ListenAddress.parse(text).path == "/run/edge.sock"
    assert TypeAdapter(Listener).validate_python(text) == "unix:/run/edge.sock"
    for setting in (TcpListener, OptionalTcpListener):
        with pytest.raises(ValidationError, match="Unix sockets are for an edge"):
            TypeAdapter(setting).validate_python(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be host:port"),
        ("8080", "must be host:port"),
        ("[::1]", "must be host:port"),
        ("::8080", "must be host:port"),
        ("::1:8080", "brackets"),
        ("[localhost]:80", "no IPv6 address"),
        ("[127.0.0.1]:80", "write 127.0.0.1"),
        ("http://127.0.0.1:80", "no IPv6 address"),
        ("127.0.0.1:65536", "0 to 65535"),
        ("127.0.0.1:-1", "0 to 65535"),
        ("127.0.0.1:", "0 to 65535"),
        ("127.0.0.1:\u0663", "0 to 65535"),
        ("127.0.0.1:80/x", "0 to 65535"),
        ("two words:80", "host name"),
        ("unix:", "names no file"),
        ("unix:/run/", "names no file"),
        ("unix:/" + "x" * 103, "at most 103 bytes"),
    ],
)
def test_an_invalid_address_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ListenAddress.parse(text)


def test_an_address_to_connect_to_is_of_one_router() -> None:
    for text in ("127.0.0.1:50051", "[::1]:50051", "router:50051", "dns:///router:50051", "unix:/run/router"):
        assert check_target(text) == text
    for text in (
        "router",
        "::1:50051",
        ":50051",
        "router:0",
        "router:65536",
        "http://router:1",
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            check_target(text)
