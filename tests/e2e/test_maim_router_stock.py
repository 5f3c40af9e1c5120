"""The unmodified Router of maim_message, in each of its forms, connected to an edge."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.message_pb2 import ROLE_USER
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.fleet import Fleet
from tests.e2e.grpc_backend import GrpcBackend, address
from tests.e2e.maim_client import maim_fleet, next_json_line
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.support.maim_message import environment_of
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).with_name("maim_router_script.py")
#: The first; the last whose frames are limited to 4 MiB; two on WebSockets; the one on Socket.IO.
VERSIONS = ["0.2.0", "0.3.8", "0.5.7", "0.6.8", "0.7.5"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with maim_fleet(tmp_path_factory.mktemp("maim_router")) as started:
        started.start_edge()
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


def url_of(edge: Process, query: str = "") -> str:
    return f"ws://{edge.address}/ws{query}"


def router_of(version: str, *args: str) -> Process:
    """Start the unmodified client of a version; the script documents its modes."""
    return Process(
        [sys.executable, str(SCRIPT), *args], environment_of(version), f"Router {version}", SCRIPT.parent
    )


async def connected(client: Process) -> None:
    """Wait until a client is connected, whatever else it prints."""
    while await next_json_line(client) != {"connected": True}:
        pass


async def heard(client: Process) -> Any:
    """Return the next message that the client's handler receives."""
    while "heard" not in (line := await next_json_line(client)):
        pass
    return line


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_router_of_each_version_talks_to_the_agent(
    fleet: Fleet, edge: Process, backend: GrpcBackend, version: str
) -> None:
    platform = f"qq-{version}"
    with router_of(version, "talk", url_of(edge), "demo:echo", platform) as client:
        assert await next_json_line(client) == {"connected": True}
        reply = await heard(client)
        assert (reply["text"], reply["platform"]) == ("re: hello 1", platform)
        if version > "0.4":
            assert (await heard(client))["text"].replace(" ", "") == 're:{"target":"42"}'
        log = backend.messages(f"demo/echo/{platform}/group:{platform}")
        kept = [json.loads(each.parts[-1].custom.json) for each in log if each.author.role == ROLE_USER]
        assert kept[0]["message_info"]["group_info"]["group_id"] == "7"

        request = BroadcastRequest(address=address(f"demo/echo/{platform}"))
        custom = request.parts.add().custom
        custom.name, custom.json = "maim.message", json.dumps(kept[0])
        backend.broadcast_stub.Broadcast(request)
        assert (await heard(client))["heard"] == kept[0]
        custom.name, custom.json = "custom_poke", '{"target": "43"}'
        backend.broadcast_stub.Broadcast(request)
        if version > "0.4":
            assert await next_json_line(client) == {"poked": {"target": "43"}}
        custom.name, custom.json = "maim.message", json.dumps({"message_info": {}, "x": "x" * (4 << 20)})
        backend.broadcast_stub.Broadcast(request)
        while "was left out" not in ((await heard(client))["text"] or ""):
            pass
        (connection,) = backend.connections(f"demo/echo/{platform}")
        assert connection.protocol == "maim.router"


async def test_the_newest_router_of_a_platform_gets_the_messages(fleet: Fleet, backend: GrpcBackend) -> None:
    one, other = fleet.edges[:2]
    # This version does not reconnect before 5 s; newer ones take the platform back after 2 s.
    with router_of("0.2.0", "talk", url_of(one), "demo:echo", "newest") as first:
        await connected(first)
        await heard(first)
        with router_of("0.2.0", "talk", url_of(other), "demo:echo", "newest") as second:
            await connected(second)
            await wait_until(
                lambda: [c.edge_id for c in backend.connections("demo/echo/newest")] == ["edge-3"],
                "only the newest is connected",
            )
            await heard(second)
            while "connected" not in (line := await next_json_line(first)):
                assert line["heard"]["content"]["code"] == "SUPERSEDED"
            assert line == {"connected": False}


async def test_of_routers_on_socket_io_the_older_one_ends(fleet: Fleet, backend: GrpcBackend) -> None:
    one, other = fleet.edges[:2]
    with router_of("0.6.8", "talk", url_of(one), "demo:echo", "mixed") as first:
        await connected(first)
        with router_of("0.7.5", "talk", url_of(other), "demo:echo", "mixed") as second:
            await connected(second)
            while "failed" not in (line := await next_json_line(first)):
                pass
            assert line["failed"]["code"] == "SUPERSEDED"
            # The first one takes the platform back, and the second one does not return.
            while await next_json_line(second) != {"connected": False}:
                pass
            await wait_until(
                lambda: [c.edge_id for c in backend.connections("demo/echo/mixed")] == ["edge-1"],
                "only the first is connected",
            )


async def test_a_router_receives_what_it_missed_while_an_edge_and_the_router_restarted(fleet: Fleet) -> None:
    edge = fleet.start_edge()
    port = edge.address
    with router_of("0.6.8", "talk", url_of(edge), "demo:echo", "restarts") as client:
        await connected(client)
        assert (await heard(client))["text"] == "re: hello 1"
        await heard(client)
        await fleet.restart_router()
        with GrpcBackend(fleet.router.address) as again:
            again.broadcast("demo/echo/restarts", "after the router")
            assert (await heard(client))["text"] == "after the router"
            edge.kill()
            again.broadcast("demo/echo/restarts", "while the edge was down")
            fleet.start_edge(TRUNKLINE_EDGE_LISTEN=port)
            # A receipt that the edge had not sent makes the message before come again.
            expected = {"while the edge was down", "re: hello 2"}
            while expected:
                expected.discard((await heard(client))["text"])


async def test_a_secret_names_the_tenant_and_a_wrong_one_is_refused_before_the_upgrade(
    fleet: Fleet, edge: Process, operator: OperatorClient
) -> None:
    key = operator.api_key("locked", "BROADCAST", "PRESENCE").secret
    with (
        GrpcBackend(fleet.router.address, key=key) as backend,
        router_of("0.6.8", "talk", url_of(edge), "s3cret", "qq") as client,
    ):
        await connected(client)
        backend.broadcast("locked/echo/qq", "for the locked")
        assert (await heard(client))["text"] == "for the locked"
        (connection,) = backend.connections("locked/echo/qq")
        assert connection.protocol == "maim.router"
    for token in ("wrong", "locked:echo", "locked:echo:wrong"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url_of(edge), additional_headers={"platform": "qq", "authorization": token})
        assert refused.value.response.status_code == 401
    with router_of("0.6.8", "refused", url_of(edge), "wrong", "qq") as client:
        assert await next_json_line(client) == {"connect": False, "connected": False}
