"""An HTTP proxy in the environment: nothing that talks to a router or to this machine uses it unasked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from trunkline_client import Backend, Client, Unreachable, address, text_of

from tests.deploy.test_compose import check_health
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.link_log import link_problems
from tests.support.patience import patient
from tests.support.processes import ROOT, environment, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Nothing listens there. No error text repeats the password.
PROXY = "http://me:hush@127.0.0.1:9"
VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(scope="module", autouse=True)
def _proxy() -> Iterator[None]:
    """Name the proxy in the environment, which all processes inherit."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, PROXY)
            patch.setenv(name.upper(), PROXY)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, _proxy: None) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("fleet")) as started:
        yield started


def run(module: str, *words: str, **env: str) -> str:
    """Run a command; return its output, errors included."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patient(30),
        check=False,
    )
    return done.stdout


async def test_a_client_gets_a_reply_from_a_worker(fleet: Fleet) -> None:
    client = Client(
        f"ws://{fleet.edges[0].address}",
        tenant="demo",
        agent="echo",
        platform="web",
        conversation="person:ann",
        user="ann",
    )
    with worker_process(fleet.router.address):
        async with client, client.ask("hello") as reply:
            assert "hello" in text_of(await reply.wait_until_ended())


async def test_health_checks_and_the_command_lines_reach_their_processes(fleet: Fleet) -> None:
    check_health("router", "127.0.0.1:50051", fleet.router.address)
    check_health("edge", "127.0.0.1:8080", fleet.edges[0].address)
    at = {"TRUNKLINE_ROUTER": fleet.router.address}
    assert "demo" in run(
        "trunkline_router", "tenant", "list", TRUNKLINE_OPERATOR_KEY=fleet.operator_key, **at
    )
    assert "position 1" in run("trunkline_client", "broadcast", "hello", **at)


async def test_a_proxy_is_used_when_asked_for_and_errors_name_it(fleet: Fleet) -> None:
    asked = {"TRUNKLINE_ROUTER_PROXY": "true"}
    (problem,) = await link_problems(fleet.router.address, **asked)
    at = {"TRUNKLINE_ROUTER": fleet.router.address}
    texts = [
        problem,
        run("trunkline_router", "tenant", "list", TRUNKLINE_OPERATOR_KEY=fleet.operator_key, **at, **asked),
        run("trunkline_client", "broadcast", "hello", **at, **asked),
    ]
    async with Backend(fleet.router.address, use_proxy=True) as backend:
        with pytest.raises(Unreachable) as error:
            await backend.broadcast(address(tenant="demo"), "hello")
        texts.append(str(error.value))
    for text in texts:
        assert "through the proxy in grpc_proxy" in text
        assert "hush" not in text


async def test_an_error_names_a_proxy_that_is_not_used(fleet: Fleet) -> None:
    async with Backend("127.0.0.1:9") as backend:
        with pytest.raises(Unreachable, match=r"not through the proxy in grpc_proxy"):
            await backend.broadcast(address(tenant="demo"), "hello")
