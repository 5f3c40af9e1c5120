"""Authentication of LangBot's clients and REST calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.langbot_client import ChatClient, EdgeFleet, RestClient, edges_of, plain
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TENANTS = """
[tenants.acme]
open_to = "loopback"
pipelines = ["bot1"]
[tenants.keys]
pipelines = ["locked"]
tokens = ["key-1"]
[tenants.other]
tokens = ["key-2"]
"""
UNAUTHORIZED = ([{"type": "error", "message": "Unauthorized"}], 1000)
NO_TOKEN = (401, {"code": -1, "msg": "No valid user token provided"})


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    with edges_of(tmp_path_factory.mktemp("langbot"), TENANTS) as started:
        yield started


async def rejected(edge: Process, pipeline: str, *args: Any, **options: Any) -> tuple[list[Any], int]:
    """Connect a client that must be rejected; return its frames and close code."""
    return await (await ChatClient(edge, pipeline, *args, **options).dial()).closed()


def token(value: str, scheme: str = "Bearer ") -> dict[str, str]:
    return {"Authorization": f"{scheme}{value}"}


async def test_a_token_is_accepted_in_header_query_or_first_frame(edges: EdgeFleet) -> None:
    edge = edges.plain
    right = {"type": "authenticate", "token": "key-1", "workspace_uuid": "w"}
    for options in (
        {"headers": token("key-1")},
        {"headers": {"X-API-Key": "key-1"}},
        {"query": "token=key-1"},
        {"first": right},
        {"first": right, "query": "token=old"},
    ):
        for pipeline in ("locked", "undeclared"):
            async with ChatClient(edge, pipeline, "group", **options) as chat:
                assert chat.connected["pipeline_uuid"] == pipeline
                await chat.say(f"to {pipeline}")
                await chat.wait_for_record(f"to {pipeline}")


async def test_a_client_without_the_right_token_is_rejected(edges: EdgeFleet) -> None:
    edge = edges.plain
    for first in (
        {"type": "authenticate", "token": "wrong"},
        {"type": "authenticate", "token": 5},
        {"type": "message", "message": plain("hello"), "token": "key-1"},
        {"type": "authenticate", "token": "key-2"},
        "{",
        b"\xff",
    ):
        assert await rejected(edge, "locked", first=first) == UNAUTHORIZED
    assert await rejected(edge, "undeclared", first={"type": "ping"}) == UNAUTHORIZED
    # Token of one tenant, pipeline of another, open or not.
    for pipeline in ("locked", "bot1"):
        assert await rejected(edge, pipeline, headers=token("key-2")) == UNAUTHORIZED


async def test_a_silent_client_is_rejected_after_a_timeout(edges: EdgeFleet) -> None:
    edge = edges.start(TRUNKLINE_HANDSHAKE_TIMEOUT_S="0.2")
    assert await rejected(edge, "locked") == UNAUTHORIZED


async def test_clients_that_always_authenticate_may_join_open_tenants(
    edges: EdgeFleet,
) -> None:
    async with ChatClient(edges.plain, "bot1", first={"type": "authenticate", "token": "any"}) as chat:
        await chat.send({"type": "ping"})
        assert (await chat.frame())["type"] == "pong"


async def test_a_pipeline_without_an_owner_is_not_found(tmp_path: Path) -> None:
    tenants = "[tenants.acme]\nopen_to = 'loopback'\npipelines = ['bot1']\n"
    with edges_of(tmp_path, tenants) as edges:
        not_found = ([{"type": "error", "message": "Pipeline not found"}], 1000)
        assert await rejected(edges.plain, "nobodys") == not_found
        answer = await RestClient(edges.plain, "nobodys").call("GET", "messages/person")
        assert answer == (404, {"code": -1, "msg": "Pipeline not found"})


async def test_rest_calls_need_a_token_if_the_tenant_has_one(edges: EdgeFleet) -> None:
    edge = edges.plain
    routes = [("GET", "messages/person"), ("POST", "reset/group"), ("GET", "connections")]
    for pipeline in ("locked", "undeclared"):
        for headers in (None, token("wrong"), token("key-1", "Basic "), {"X-API-Key": "wrong"}):
            for route in routes:
                assert await RestClient(edge, pipeline, headers).call(*route) == NO_TOKEN
        for headers in (token("key-1"), {"X-API-Key": "key-1"}):
            for route in routes:
                await RestClient(edge, pipeline, headers).ok(*route)
    assert await RestClient(edge, "locked", token("key-2")).call("GET", "connections") == NO_TOKEN
    assert await RestClient(edge, "locked").call("POST", "broadcast", json={"message": "x"}) == NO_TOKEN
    # A proxied request does not count as from this machine.
    proxied = {"X-Forwarded-For": "203.0.113.5"}
    assert await RestClient(edge, "bot1", proxied).call("GET", "messages/person") == NO_TOKEN


async def test_rest_calls_reject_an_unknown_session_type(edges: EdgeFleet) -> None:
    for route in (("GET", "messages/channel"), ("POST", "reset/channel")):
        answer = await RestClient(edges.plain, "bot1").call(*route)
        assert answer == (400, {"code": -1, "msg": "session_type must be person or group"})
