"""EdgeService: links."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import LinkRequest, LinkResponse, LinkWelcome
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceServicer

from trunkline_router.core.directory import connections
from trunkline_router.rpc import streams
from trunkline_router.rpc.status import answers
from trunkline_router.runtime import RouterRuntime

_log = structlog.get_logger()


class EdgeServicer(EdgeServiceServicer):
    """Carries batches between edges and the core."""

    def __init__(self, shell: RouterRuntime, router_id: str) -> None:
        self._shell = shell
        self._router_id = router_id

    @answers
    async def Link(  # noqa: N802
        self, request_iterator: AsyncIterator[LinkRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See edge_service.proto."""
        shell, core = self._shell, self._shell.core
        first = await streams.first(context)
        link, before = core.linked(first.hello, time.monotonic())
        if before is not None and before in shell.streams:
            shell.streams[before].end(catalogue.LINK_REPLACED.refused(edge_id=link.edge_id))
        stream = shell.opened(link)
        shell.settle()
        _log.info("edge linked", edge=link.edge_id, boot=link.boot_id, peer=context.peer())
        try:
            await context.write(LinkResponse(welcome=self._welcome(), credit=core.window))
            core.link_received(link, first, time.monotonic())
            shell.settle()
            writing = streams.write_batches(
                context, stream, link.outbox.take, LinkResponse, lambda: shell.drained(link)
            )
            await streams.run(stream, self._read(link, context), writing)
        finally:
            core.link_lost(link)
            del shell.streams[link]
            shell.drained(link)
            _log.info("edge's link ended", edge=link.edge_id, connections=len(link.connections))

    def _welcome(self) -> LinkWelcome:
        core = self._shell.core
        return LinkWelcome(
            router_id=self._router_id,
            contract_minor=catalogue.CONTRACT_MINOR,
            lease_s=max(1, round(core.lease_s)),
        )

    async def _read(self, link: connections.Link, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        shell, core = self._shell, self._shell.core
        while (batch := await context.read()) is not grpc.aio.EOF:
            core.link_received(link, batch, time.monotonic())
            shell.settle()
