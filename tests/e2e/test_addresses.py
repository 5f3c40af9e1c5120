"""Addresses that edge and router listen on: IPv6, all interfaces, Unix sockets; and invalid ones."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from trunkline_client import Client
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from tests.support.patience import patient
from tests.support.processes import ROOT, Process, edge_process, environment, router_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")

QUERY = "tenant=demo&agent=echo&platform=web&conversation=person:ann&user=ann"


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with router_process(
        tmp_path_factory.mktemp("router"), TRUNKLINE_ROUTER_LISTEN="[::1]:0", TRUNKLINE_OPEN_TO="loopback"
    ) as process:
        yield process


def ready_line(edge: Process) -> dict[str, str]:
    """The line that an edge logs when it is ready."""
    lines = [json.loads(line) for line in edge.stderr.splitlines()]
    (found,) = [line for line in lines if line["event"] == "edge is ready"]
    return found


async def test_an_edge_on_all_interfaces_serves_ipv6_and_ipv4(router: Process) -> None:
    assert router.address.startswith("[::1]:")
    with edge_process(router.address, TRUNKLINE_EDGE_LISTEN="[::]:0") as edge:
        port = edge.address.rpartition(":")[2]
        assert edge.address == f"[::]:{port}"
        assert ready_line(edge)["url"] == f"http://[::1]:{port}"
        for host in ("[::1]", "127.0.0.1"):
            # The tenant is open to loopback, which both addresses are.
            async with Client(
                f"ws://{host}:{port}",
                tenant="demo",
                agent="echo",
                platform="web",
                conversation="person:ann",
                user="ann",
            ) as client:
                await client.send("hello")
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.get(f"http://{host}:{port}/healthz")).status_code == 200


async def test_an_edge_on_a_unix_socket_serves_a_proxy_whose_clients_are_not_local(
    router: Process, tmp_path: Path
) -> None:
    path = tmp_path / "edge.sock"
    with edge_process(router.address, TRUNKLINE_EDGE_LISTEN=f"unix:{path}") as edge:
        assert edge.address == f"unix:{path}"
        by_path = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=by_path, base_url="http://localhost") as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/tenants/demo/connections")).status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            async with unix_connect(str(path), f"ws://localhost/v1/connect?{QUERY}", proxy=None):
                pass
        assert refused.value.response.status_code == 401
        assert edge.terminate() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("edge", "TRUNKLINE_EDGE_LISTEN", "127.0.0.1:65536"),
        ("edge", "TRUNKLINE_EDGE_LISTEN", "::1:8080"),
        ("router", "TRUNKLINE_ROUTER_LISTEN", "127.0.0.1:70000"),
        ("router", "TRUNKLINE_LINK_LISTEN", "unix:/tmp/links"),
    ],
)
def test_an_invalid_address_is_refused_by_the_name_of_its_setting(
    name: str, variable: str, value: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"trunkline_{name}", "serve"],
        cwd=ROOT,
        env=environment({variable: value}),
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert variable in line
