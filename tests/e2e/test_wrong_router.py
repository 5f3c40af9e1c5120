"""An edge whose router cannot be linked to says why, in one line, and keeps trying."""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent import futures
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.edge_service_pb2 import LinkRequest, LinkResponse, LinkWelcome
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceServicer
from trunkline.v1.edge_service_pb2_grpc import add_EdgeServiceServicer_to_server as serve_edges

from tests.e2e.fleet import fleet_of
from tests.e2e.polling import wait_until
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


CUT_OFF = "the stream ended while it was written to"


class FarRouter(EdgeServiceServicer):
    """A router two minor versions ahead."""

    def Link(self, requests: Iterator[LinkRequest], context: object) -> Iterator[LinkResponse]:  # noqa: N802
        next(requests)
        yield LinkResponse(welcome=LinkWelcome(router_id="r", contract_minor=CONTRACT_MINOR + 2))


def problems(edge: Process) -> list[str]:
    """What the edge has said about its link."""
    lines = [json.loads(line) for line in edge.stderr.splitlines()]
    return [line["problem"] for line in lines if "problem" in line]


async def told(router: str, **env: str) -> list[str]:
    """What an edge says that is to link to this address, once it has said something."""
    env = {"TRUNKLINE_EDGE_LISTEN": "127.0.0.1:0", "TRUNKLINE_ROUTER": router, **env}
    with Process([sys.executable, "-m", "trunkline_edge", "serve"], env, "edge", ROOT) as edge:
        await wait_until(lambda: problems(edge), "the edge says something")
        with suppress(AssertionError):
            # Time for some more attempts, which are to be silent.
            await wait_until(lambda: len(problems(edge)) > 1, "more is said", 0.6)
        assert await asyncio.to_thread(edge.terminate) == 0
        assert "Traceback" not in edge.stderr
        return problems(edge)


async def test_an_edge_says_in_one_line_that_its_router_is_no_grpc_server(tmp_path: Path) -> None:
    with fleet_of(tmp_path) as fleet:
        (problem,) = await told(fleet.processes[1].address)
    assert "it is no gRPC server: TRUNKLINE_ROUTER must name a router's gRPC port" in problem


async def test_an_edge_says_in_one_line_that_nothing_listens_there() -> None:
    (problem,) = await told("127.0.0.1:9")
    assert "UNAVAILABLE" in problem


async def test_an_edge_says_in_one_line_that_its_router_is_of_another_version() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    serve_edges(FarRouter(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        (problem,) = await told(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    theirs = f"Incompatible contract versions v1.{CONTRACT_MINOR + 2} and v1.{CONTRACT_MINOR}"
    assert problem.startswith(theirs)


async def test_an_edge_says_in_one_line_that_a_grpc_server_is_no_router() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        # gRPC itself may lose the reason where a stream is refused while it is written to.
        (problem,) = [each for each in await told(f"127.0.0.1:{port}") if each != CUT_OFF]
    finally:
        server.stop(None).wait()
    assert "is it a Trunkline router?" in problem
