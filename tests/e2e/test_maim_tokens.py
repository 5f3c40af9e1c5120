"""Authentication of clients and backends of maim_message's tenant protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.maim_client import Frame, MaimClient, chat, http, maim_fleet, next_json_line, stock_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.fleet import Fleet
    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with maim_fleet(tmp_path_factory.mktemp("maim")) as started:
        yield started


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?token=s3cret", {}),
        ("", {"Authorization": "Bearer s3cret"}),
        # Header of the stock client for the server_url ws://any:s3cret@host.
        ("", {"Authorization": "Basic YW55OnMzY3JldA=="}),
    ],
    ids=["query", "bearer", "basic"],
)
async def test_a_token_is_accepted(edge: Process, query: str, headers: dict[str, str]) -> None:
    async with MaimClient(edge, "locked/tokens", query, **headers) as adapter:
        assert (await adapter.say("tokens-1", "hello"))["success"]


async def test_the_stock_client_sends_its_token_in_the_url(edge: Process) -> None:
    with stock_client("stay", f"ws://any:s3cret@{edge.address}", "locked", "tokens") as client:
        assert (await next_json_line(client))["ok"]


@pytest.mark.parametrize("name", ["token", "api_key"])
async def test_a_token_in_the_first_frame_is_accepted(edge: Process, name: str) -> None:
    async with connect(f"ws://{edge.address}/ws/locked/tokens") as ws:
        await ws.send(json.dumps({"type": "auth", name: "s3cret"}))
        assert json.loads(await ws.recv())["type"] == "connection_confirmed"


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ({"type": "auth", "token": "wrong"}, "the token is not one of this tenant's"),
        (chat("hello"), "a token must be given"),
    ],
)
async def test_a_wrong_first_frame_is_an_error_and_closes(edge: Process, first: Frame, says: str) -> None:
    async with connect(f"ws://{edge.address}/ws/locked/tokens") as ws:
        await ws.send(json.dumps(first))
        error = json.loads(await ws.recv())
        assert (error["type"], error["error_code"]) == ("error", "UNAUTHORIZED")
        assert says in error["error_message"]
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4500


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/ws/locked/tokens?token=wrong", 401, "the token is not one of this tenant's"),
        ("/ws/nobody/echo/tokens", 404, "Tenant nobody does not exist"),
        ("/ws/bare/tokens", 400, "set [tenants.bare] agent"),
        ("/ws/demo/with%20space", 400, "white space"),
    ],
)
async def test_a_rejection_is_an_http_status_before_the_upgrade(
    edge: Process, path: str, status: int, says: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://{edge.address}{path}")
    response = refused.value.response
    assert response.status_code == status
    assert says in response.body.decode()


async def test_http_calls_need_the_token_too(edge: Process) -> None:
    calls = (
        ("POST", "/api/v1/tenants/locked/platforms/tokens/broadcast", {"type": "notice"}),
        ("GET", "/api/v1/tenants/locked/connections", None),
        ("GET", "/api/v1/message/none@locked/result", None),
    )
    for method, path, body in calls:
        status, answer = await http(edge, method, path, body)
        assert status == 401
        assert "must be given" in answer["detail"]
        status, _ = await http(edge, method, path, body, authorization="Bearer s3cret")
        assert status in (200, 404)
