"""The unmodified client of maim_message's API server, connected to an edge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.message_pb2 import ROLE_USER

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.maim_client import next_json_line
from tests.support.maim_message import environment_of
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALLED = "0.6.6"
#: The version in .venv, the last one on WebSockets, and the one on Socket.IO.
VERSIONS = [INSTALLED, "0.6.8", "0.7.5"]
SCRIPT = Path(__file__).with_name("maim_api_client_script.py")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("maim_api_stock")) as started:
        started.start_worker("reply")
        yield started


@pytest.fixture
def url(fleet: Fleet) -> str:
    return f"ws://{fleet.processes[1].address}/ws"


def stock_client(version: str, *args: str) -> Process:
    env = {} if version == INSTALLED else environment_of(version)
    return Process([sys.executable, str(SCRIPT), *args], env, f"stock client {version}", SCRIPT.parent)


async def segment(client: Process) -> Any:
    """Return the next segment that the client's callback receives."""
    return (await next_json_line(client))["segment"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_stock_client_sends_receives_and_survives_oversized_messages(
    fleet: Fleet, url: str, version: str
) -> None:
    platform = f"qq-{version}"
    place = f"demo/echo/{platform}"
    with (
        stock_client(version, "talk", url, "demo:echo", platform) as client,
        GrpcBackend(fleet.router.address) as backend,
    ):
        assert await next_json_line(client) == {"connected": True}
        assert await next_json_line(client) == {"said": True, "custom": True}
        reply = await next_json_line(client)
        assert reply["segment"] == {"type": "text", "data": "re: hello"}
        assert reply["dim"] == {"api_key": "demo:echo", "platform": platform}
        assert reply["info"]["sender_info"]["user_info"]["user_nickname"] == "Test worker"
        assert (reply["meta"]["sender_user"], reply["meta"]["platform"]) == ("server", platform)
        assert (await segment(client))["data"].replace(" ", "") == 're:{"target":"42"}'
        log = backend.messages(f"{place}/group:{platform}")
        kept = [json.loads(each.parts[-1].custom.json) for each in log if each.author.role == ROLE_USER]
        assert [each["type"] for each in kept] == ["sys_std", "custom_poke"]
        assert [each["payload"] for each in kept][1] == {"target": "42"}

        request = BroadcastRequest(address=address(place))
        custom = request.parts.add().custom
        custom.name, custom.json = "custom_poke", '{"target": "43"}'
        backend.broadcast_stub.Broadcast(request)
        assert await next_json_line(client) == {"poke": {"target": "43"}}
        custom.name, custom.json = "custom_poke", json.dumps("x" * (1 << 20))
        backend.broadcast_stub.Broadcast(request)
        assert "was left out" in (await segment(client))["data"]
        backend.broadcast(place, "still there")
        assert (await segment(client))["data"] == "still there"
        (connection,) = backend.connections(place)
        assert connection.protocol == "maim.api"


async def test_the_client_on_socket_io_returns_after_an_edge_and_the_router_restarted(fleet: Fleet) -> None:
    edge = fleet.start_edge()
    place = "demo/echo/restarts"
    with stock_client("0.7.5", "talk", f"ws://{edge.address}/ws", "demo:echo", "restarts") as client:
        for _ in range(4):
            await next_json_line(client)
        await fleet.restart_router()
        with GrpcBackend(fleet.router.address) as backend:
            backend.broadcast(place, "after the router")
            assert (await segment(client))["data"] == "after the router"
            edge.kill()
            backend.broadcast(place, "while the edge was down")
            fleet.start_edge(TRUNKLINE_EDGE_LISTEN=edge.address)
            # A receipt that the edge had not sent makes the message before come again.
            while (await segment(client))["data"] != "while the edge was down":
                pass


async def test_the_client_on_socket_io_keeps_trying_a_wrong_key(url: str) -> None:
    with stock_client("0.7.5", "states", url, "no-agent", "qq") as client:
        seen = await next_json_line(client)
    assert not seen["connected"]
    # Between two attempts it is the one, during an attempt the other.
    assert seen["states"] in (["disconnected"], ["connecting"])


@pytest.mark.parametrize(("key", "status"), [("no-agent", 401), ("nobody:echo", 404), ("demo:a/b", 400)])
async def test_the_stock_client_gets_the_reason_why_it_may_not_connect(
    url: str, key: str, status: int
) -> None:
    with stock_client(INSTALLED, "refused", url, key, "qq") as client:
        error = {"error": f"server rejected WebSocket connection: HTTP {status}", "connected": False}
        assert await next_json_line(client) == error
