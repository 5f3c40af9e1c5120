"""EdgeService: the links of edges."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import LinkRequest, LinkResponse, LinkWelcome
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceServicer

from trunkline_router.active_call import ACTIVE_CALL, UNCHECKED_CALL
from trunkline_router.certificate_names import SEPARATOR, allows_edge_id
from trunkline_router.core.directory import connections
from trunkline_router.rpc import streams
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()


class EdgeServicer(EdgeServiceServicer):
    """Carries batches between edges and the core."""

    def __init__(self, runtime: RouterRuntime, router_id: str) -> None:
        self._runtime = runtime
        self._router_id = router_id

    @rpc_method
    async def Link(  # noqa: N802
        self, request_iterator: AsyncIterator[LinkRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See edge_service.proto."""
        runtime = self._runtime
        first = await streams.read_hello(context)
        _check_edge_id(first.hello.edge_id)
        with runtime.step() as core:
            link, replaced = core.link_opened(first.hello, time.monotonic())
            if replaced is not None and replaced in runtime.streams:
                runtime.streams[replaced].end(catalogue.LINK_REPLACED.refused(edge_id=link.edge_id))
            stream = runtime.open_stream(link)
        _log.info("edge linked", edge=link.edge_id, boot=link.boot_id, peer=context.peer())
        try:
            await context.write(LinkResponse(welcome=self._welcome(), credit=core.window))
            with runtime.step() as core:
                core.link_received(link, first, time.monotonic())
            writing = streams.write_batches(
                context, stream, link.outbox.take, LinkResponse, lambda: runtime.link_drained(link)
            )
            await streams.run(stream, self._read(link, context), writing)
        finally:
            # First: an exception of the core must not leave the stream registered.
            runtime.close_stream(link)
            with runtime.step() as core:
                core.link_lost(link)
            runtime.link_drained(link)
            _log.info("link ended", edge=link.edge_id, connections=len(link.connections))

    def _welcome(self) -> LinkWelcome:
        core = self._runtime.core
        return LinkWelcome(
            router_id=self._router_id,
            contract_minor=catalogue.CONTRACT_MINOR,
            lease_s=max(1, round(core.lease_s)),
        )

    async def _read(self, link: connections.Link, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (batch := await context.read()) is not grpc.aio.EOF:
            with self._runtime.step() as core:
                core.link_received(link, batch, time.monotonic())


def _check_edge_id(edge_id: str) -> None:
    """Raises Refused FORBIDDEN if the edge's certificate does not allow its id."""
    names = ACTIVE_CALL.get(UNCHECKED_CALL).caller.edge_names
    if names and not allows_edge_id(names, edge_id):
        own = " or ".join(names)
        problem = f"its certificate is for {own}, so its id must be that, or that with {SEPARATOR} and more"
        raise catalogue.FORBIDDEN.refused(problem=f"edge {edge_id} may not link: {problem}")
