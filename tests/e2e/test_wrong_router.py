"""An edge that cannot link to its router logs the reason in one line and keeps retrying."""

from __future__ import annotations

from concurrent import futures
from typing import TYPE_CHECKING

import grpc
from trunkline.v1.catalogue import CONTRACT_MINOR
from trunkline.v1.edge_service_pb2 import LinkRequest, LinkResponse, LinkWelcome
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceServicer
from trunkline.v1.edge_service_pb2_grpc import add_EdgeServiceServicer_to_server as serve_edges

from tests.e2e.fleet import fleet_of
from tests.e2e.link_log import WRITE_INTERRUPTED, link_problems

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NewerRouter(EdgeServiceServicer):
    """Router two minor versions ahead."""

    def Link(self, requests: Iterator[LinkRequest], context: object) -> Iterator[LinkResponse]:  # noqa: N802
        next(requests)
        yield LinkResponse(welcome=LinkWelcome(router_id="r", contract_minor=CONTRACT_MINOR + 2))


async def test_an_edge_reports_that_its_router_is_not_a_grpc_server(tmp_path: Path) -> None:
    with fleet_of(tmp_path) as fleet:
        (problem,) = await link_problems(fleet.processes[1].address)
    assert "it is no gRPC server: TRUNKLINE_ROUTER must name a router's gRPC port" in problem


async def test_an_edge_reports_that_nothing_listens_at_the_address() -> None:
    (problem,) = await link_problems("127.0.0.1:9")
    assert "UNAVAILABLE" in problem


async def test_an_edge_reports_that_its_router_has_an_incompatible_version() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    serve_edges(NewerRouter(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        (problem,) = await link_problems(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    theirs = f"Incompatible contract versions v1.{CONTRACT_MINOR + 2} and v1.{CONTRACT_MINOR}"
    assert problem.startswith(theirs)


async def test_an_edge_reports_that_a_grpc_server_is_not_a_router() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        # gRPC may lose the reason if a stream is rejected during a write.
        (problem,) = [each for each in await link_problems(f"127.0.0.1:{port}") if each != WRITE_INTERRUPTED]
    finally:
        server.stop(None).wait()
    assert "is it a Trunkline router?" in problem
