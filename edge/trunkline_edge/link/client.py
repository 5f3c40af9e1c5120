"""Client of the routers' link: connects to the one that owns the log, transfers batches, and reconnects."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest, LinkResponse
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceStub
from trunkline_runtime.certificates import alternative_names
from trunkline_runtime.contract_version import check_peer_version

from trunkline_edge.link.attempts import LinkAttempts
from trunkline_edge.link.diagnostics import CUT_OFF, LinkFailed, explain
from trunkline_edge.link.owner_watch import OwnerWatch
from trunkline_edge.router_channel import RouterChannelFactory
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings

_log = structlog.get_logger()

WELCOME_TIMEOUT_S = 10.0
#: Share of the lease after which a keep-alive is late: a router sends three in each.
LATE_SHARE = 0.4

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # Each attempt has its own channel; this client backs off between attempts.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class LinkClient:
    """Keeps one edge linked to the router that owns the log; `linked` is called each time a link is up."""

    def __init__(
        self,
        runtime: EdgeRuntime,
        settings: EdgeSettings,
        linked: Callable[[], None],
        channels: RouterChannelFactory | None = None,
    ) -> None:
        self._runtime = runtime
        self._routers = runtime.routers
        self._channels = channels or RouterChannelFactory()
        self._watch = OwnerWatch(self._routers, self._channels)
        self._attempts = LinkAttempts(self._routers, random.random)
        self._window = settings.link_window
        self._linked = linked
        self._edge_id = settings.edge_id or _random_id(settings)
        self._boot_id = secrets.token_hex(8)
        self._keepalive_due = False
        self._linked_at = 0.0
        self._last_read_at = 0.0
        self._lease_s = WELCOME_TIMEOUT_S
        #: The last problem with each router, to log each once, however often it repeats.
        self._logged: dict[str, str] = {}

    async def run(self) -> None:
        """Link, and relink whenever the link breaks; returns only by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run())
            while True:
                await self._link_once()

    async def _link_once(self) -> None:
        """Link to the router of the next attempt until the link breaks, then pause."""
        router, attempts = self._attempts.router, self._attempts
        owner, failure = "", None
        try:
            owner = await self._link_until_moved(router)
        except LinkFailed as reason:
            failure = reason
        was_up = self._runtime.core.uplink.is_up
        if was_up:
            attempts.link_was_up(time.monotonic() - self._linked_at)
            self._logged.clear()
        self._runtime.link_lost()
        if failure is not None:
            self._log_problem(router, str(failure))
        elif was_up:
            _log.warning("another router owns the log; linking to it", router=router, owner=owner)
        pause_s = attempts.fail(may_be_standby=failure is not None and failure.may_be_standby)
        if owner:
            attempts.prefer(owner)
        elif pause_s and (risen := await self._watch.next_rise(pause_s)):
            attempts.prefer(risen)

    def _log_problem(self, router: str, problem: str) -> None:
        logged = self._logged.get(router)
        if problem != logged and not (logged and problem == CUT_OFF):
            _log.warning("no link to the router; trying again", router=router, problem=problem)
            self._logged[router] = problem

    async def _link_until_moved(self, router: str) -> str:
        """Link to a router. Return the owner once another router owns the log; raises LinkFailed.

        The link is closed then.
        """
        link = asyncio.create_task(self._link(router))
        moved = asyncio.create_task(self._watch.wait_until_moved(router, self._is_silent))
        tasks = {link, moved}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not link.cancelled():
            link.result()
        return moved.result()

    async def _link(self, router: str) -> None:
        """Link to a router until the link breaks. Raises LinkFailed."""
        async with self._channels.open(router, OPTIONS) as channel:
            call = EdgeServiceStub(channel).Link(metadata=self._channels.metadata)
            try:
                await self._say_hello(call, router)
                await self._transfer(call)
            except grpc.aio.AioRpcError as error:
                raise explain(error, self._channels) from None
            finally:
                call.cancel()
        raise LinkFailed("the router ended the link")

    def _is_silent(self) -> bool:
        """Whether the router's keep-alive is late, or the link is not up."""
        core = self._runtime.core
        if core.backpressure.is_congested:
            return False
        silent_s = time.monotonic() - self._last_read_at
        return not core.uplink.is_up or silent_s > self._lease_s * LATE_SHARE

    async def _say_hello(self, call: Any, router: str) -> None:
        hello = LinkHello(
            edge_id=self._edge_id, boot_id=self._boot_id, contract_minor=catalogue.CONTRACT_MINOR
        )
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await call.write(LinkRequest(hello=hello, credit=self._window))
                first = await call.read()
        except TimeoutError:
            raise LinkFailed(
                f"no welcome within {WELCOME_TIMEOUT_S:g} s: is it a Trunkline router?"
            ) from None
        if first is grpc.aio.EOF:
            await _raise_status(call)
        if not first.HasField("welcome"):
            raise LinkFailed("the first message was not a welcome: is it a Trunkline router?")
        try:
            check_peer_version(first.welcome.contract_minor)
        except Refused as reason:
            raise LinkFailed(str(reason)) from None
        self._lease_s = max(1, first.welcome.lease_s)
        self._linked_at = self._last_read_at = time.monotonic()
        self._routers.in_use = router
        self._watch.forget_rise()
        self._runtime.linked()
        self._runtime.link_received(first)
        _log.info("linked to a router", router=router, edge=self._edge_id)
        self._linked()

    async def _transfer(self, call: Any) -> None:
        """Read and write until the stream ends or either fails."""
        tasks = [asyncio.create_task(step(call)) for step in (self._read, self._write, self._keep_alive)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, grpc.aio.AioRpcError | LinkFailed):
                raise result
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, asyncio.InvalidStateError):
                raise result

    async def _read(self, call: Any) -> None:
        runtime = self._runtime
        while (batch := await call.read()) is not grpc.aio.EOF:
            assert isinstance(batch, LinkResponse)
            self._last_read_at = time.monotonic()
            try:
                runtime.link_received(batch)
            except KeyError as error:
                raise LinkFailed(f"the router sent a frame for unknown topic {error}") from None
            if batch.entries:
                await runtime.congestion_over()
                self._last_read_at = time.monotonic()
                runtime.step(runtime.core.batch_delivered, len(batch.entries))
        await _raise_status(call)

    async def _write(self, call: Any) -> None:
        runtime, uplink = self._runtime, self._runtime.core.uplink
        while True:
            await runtime.link_wake.wait()
            runtime.link_wake.clear()
            while (batch := uplink.take()) is not None:
                await call.write(batch)
                runtime.step(runtime.core.batch_sent)
            if self._keepalive_due:
                self._keepalive_due = False
                await call.write(LinkRequest())

    async def _keep_alive(self, call: Any) -> None:
        """Send keep-alives, and check for the router's."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            silent_s = time.monotonic() - self._last_read_at
            # During congestion nothing is read from the link.
            if silent_s > self._lease_s and not self._runtime.core.backpressure.is_congested:
                raise LinkFailed(catalogue.LEASE_ENDED.sentence(lease_s=self._lease_s))
            self._keepalive_due = True
            self._runtime.link_wake.set()


async def _raise_status(call: Any) -> None:
    """Raises AioRpcError, or LinkFailed if the router ended the stream without an error."""
    code, details = await call.code(), await call.details()
    if code is not grpc.StatusCode.OK:
        metadata = await call.trailing_metadata()
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)
    raise LinkFailed("the router ended the link")


def _random_id(settings: EdgeSettings) -> str:
    """An id that the certificate for links allows, if the router requires that; see docs/security.md."""
    names = alternative_names(settings.router_cert) if settings.router_cert else []
    return f"{names[0]}#{secrets.token_hex(6)}" if names else f"edge-{secrets.token_hex(6)}"
