"""A router that owns its log, may no longer own it, waits for it, or has lost it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.edge_service_pb2 import LinkHello, LinkRequest
from trunkline.v1.edge_service_pb2_grpc import EdgeServiceStub
from trunkline.v1.history_service_pb2 import ListMessagesRequest
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline_router import app, runtime, term
from trunkline_router.app import Router
from trunkline_router.core.values.topics import GROUP
from trunkline_router.grpc_options import server_options
from trunkline_router.log.interface import Log, LogUnavailable
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.sqlite.database import SqliteDatabase
from trunkline_router.settings import RouterSettings
from trunkline_runtime.process import StartError

from tests.router.rpc.in_process_router import METHODS, InProcessRouter, ended, opening, request_for
from tests.support.patience import patient

PATIENCE_S = patient(5)
TENANT = "open"


class ScriptedLease:
    """A lease that the test shortens and revokes."""

    def __init__(self) -> None:
        self.valid = True
        self.revoked = asyncio.Event()
        self.released = asyncio.Event()

    def is_valid(self) -> bool:
        return self.valid

    async def lost(self) -> str:
        await self.revoked.wait()
        return "the test says so"

    async def release(self) -> None:
        self.released.set()


class ScriptedDatabase:
    """A log in a file, which this router owns when the test lets it."""

    def __init__(self, folder: Path) -> None:
        self._database = SqliteDatabase(folder / "log.db", None)
        self.free = asyncio.Event()
        self.lease = ScriptedLease()
        self.logs: list[Log] = []
        self.opened: Callable[[Log], None] = self.logs.append

    def describe(self) -> str:
        return "scripted"

    async def acquire(self, must_wait: Callable[[], None]) -> OwnedLog:
        if not self.free.is_set():
            must_wait()
            await self.free.wait()
        self.lease = ScriptedLease()
        owned = await self._database.acquire(must_wait)
        self.opened(owned.log)
        return OwnedLog(owned.log, self.lease)

    async def close(self) -> None:
        pass

    def revoke(self) -> None:
        """Let another router own the log."""
        self.free.clear()
        self.lease.valid = False
        self.lease.revoked.set()


class Running:
    """A router in this process, and stubs to call it."""

    def __init__(self, database: ScriptedDatabase, channel: grpc.aio.Channel) -> None:
        self.database = database
        self.channel = channel
        self.broadcasts = BroadcastServiceStub(channel)
        self.history = HistoryServiceStub(channel)
        self.edges = EdgeServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def health(self, service: str = "trunkline.v1.EdgeService") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self._health.Check(request, timeout=PATIENCE_S)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def watch(self) -> Any:
        return self._health.Watch(health_pb2.HealthCheckRequest(service="trunkline.v1.EdgeService"))

    async def until(self, service_status: str) -> None:
        """Wait for a status by watching it."""
        watch = self.watch()
        async with asyncio.timeout(PATIENCE_S):
            async for answer in watch:
                if health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == service_status:
                    break
        watch.cancel()

    async def publish(self, text: str) -> str:
        return (await ended(self.broadcasts.Broadcast(message(text), timeout=PATIENCE_S)))[0]

    async def texts(self) -> list[str]:
        request = ListMessagesRequest()
        request.address.CopyFrom(message("").address)
        listed = await self.history.ListMessages(request, timeout=PATIENCE_S)
        return [each.parts[0].text.text for each in listed.messages]


def message(text: str) -> BroadcastRequest:
    request = BroadcastRequest()
    request.address.tenant, request.address.agent, request.address.platform = TENANT, "a", "web"
    request.address.conversation.kind, request.address.conversation.id = CONVERSATION_KIND_GROUP, "tea"
    request.parts.add().text.text = text
    return request


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedDatabase:
    database = ScriptedDatabase(tmp_path)
    monkeypatch.setattr(app, "open_database", lambda _: database)
    monkeypatch.setattr(app, "RETRY_S", 0.01)
    monkeypatch.setattr(runtime, "SUSPENSION_PATIENCE_S", 0.3)
    monkeypatch.setattr(term, "LEAVE_S", 0.05)
    return database


@asynccontextmanager
async def running(
    database: ScriptedDatabase, folder: Path, stop: asyncio.Event | None = None, **options: Any
) -> AsyncIterator[Running]:
    """Run a router until the block ends, from when it listens."""
    settings = RouterSettings(
        data_dir=folder, router_listen="127.0.0.1:0", tenants=(TENANT,), lease_s=0.3, **options
    )
    stop = stop or asyncio.Event()
    router = Router(settings, server_options(100, 600))
    serving = asyncio.create_task(router.run(stop))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not router._listening:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        async with grpc.aio.insecure_channel(router._listening) as channel:
            yield Running(database, channel)
    finally:
        stop.set()
        await serving


@pytest.fixture
async def owner(database: ScriptedDatabase, tmp_path: Path) -> AsyncIterator[Running]:
    database.free.set()
    async with running(database, tmp_path) as router:
        yield router


@pytest.fixture
async def standby(database: ScriptedDatabase, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(database, tmp_path) as router:
        yield router


async def test_a_suspended_router_sends_what_it_has_once_it_owns_the_log_again(owner: Running) -> None:
    many = owner.broadcasts.BroadcastMany()
    await many.write(many_of(1))
    assert [result.number for result in (await many.read()).results] == [1]
    owner.database.lease.valid = False
    await many.write(many_of(2))
    await until_committed(owner, 2)
    reading = asyncio.create_task(many.read())
    await owner.until("NOT_SERVING")
    assert not reading.done()
    owner.database.lease.valid = True
    assert [result.number for result in (await asyncio.wait_for(reading, PATIENCE_S)).results] == [2]
    assert await owner.health() == "SERVING"
    many.cancel()


def many_of(number: int) -> BroadcastManyRequest:
    request = BroadcastManyRequest()
    request.requests.add(number=number).request.CopyFrom(message(f"message {number}"))
    return request


async def until_committed(router: Running, count: int) -> None:
    (log,) = router.database.logs
    async with asyncio.timeout(PATIENCE_S):
        while (await log.heads([(TENANT, "a", "web", GROUP, "tea")]))[0].seq < count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_a_doubt_that_only_a_stream_met_does_not_hold_it_for_longer(tmp_path: Path) -> None:
    owned = await SqliteDatabase(tmp_path / "log.db", None).acquire(lambda: None)
    lease = ScriptedLease()
    router = term.make_runtime(RouterSettings(data_dir=tmp_path), OwnedLog(owned.log, lease))
    stream = router.open_stream(object())
    lease.valid = False
    # Its writer clears `wake`, and takes nothing.
    assert stream.is_held()
    lease.valid = True
    with router.step():
        pass
    assert stream.wake.is_set()
    router.media.close()
    await owned.log.close()
    await owned.lease.release()


async def test_a_suspended_router_keeps_links_alive(owner: Running) -> None:
    link = owner.edges.Link()
    hello = LinkHello(edge_id="e", boot_id="b", contract_minor=catalogue.CONTRACT_MINOR)
    await link.write(LinkRequest(hello=hello, credit=4))
    assert (await link.read()).HasField("welcome")
    policies = await link.read()
    assert policies.entries[-1].HasField("policies_told")
    owner.database.lease.valid = False
    for _ in range(3):
        # Heartbeats, without anything in them.
        assert (await asyncio.wait_for(link.read(), PATIENCE_S)).ByteSize() == 0
        await link.write(LinkRequest())
    link.cancel()


async def test_a_suspended_router_answers_no_call_and_says_that_it_is_not_ready(owner: Running) -> None:
    assert await owner.publish("tea") == "OK"
    owner.database.lease.valid = False
    assert await owner.health() == "NOT_SERVING"
    assert await owner.health("") == "SERVING"
    assert await owner.publish("cake") == "LOG_UNAVAILABLE"
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await owner.texts()
    owner.database.lease.valid = True
    assert await owner.publish("milk") == "OK"
    assert await owner.texts() == ["tea", "milk"]


async def test_a_call_waits_while_the_log_is_in_doubt_for_a_moment(owner: Running) -> None:
    owner.database.lease.valid = False
    publishing = asyncio.create_task(owner.publish("tea"))
    await owner.until("NOT_SERVING")
    assert not publishing.done()
    owner.database.lease.valid = True
    assert await publishing == "OK"


async def test_those_who_watch_the_health_do_not_delay_the_stop(
    database: ScriptedDatabase, tmp_path: Path
) -> None:
    database.free.set()
    stop = asyncio.Event()
    async with running(database, tmp_path, stop) as router:
        watch = router.watch()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        began = asyncio.get_running_loop().time()
        stop.set()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert asyncio.get_running_loop().time() - began < term.GRACE_S


async def test_what_was_read_before_the_log_was_in_doubt_is_not_answered_after(
    owner: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owner.publish("tea")
    (log,) = owner.database.logs
    read = log.read

    async def read_late(requests: Any) -> Any:
        pages = await read(requests)
        owner.database.lease.valid = False
        return pages

    monkeypatch.setattr(log, "read", read_late)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await owner.texts()


async def test_a_router_that_lost_the_log_ends_streams_and_calls_and_is_a_standby(
    owner: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owner.publish("tea")
    (log,) = owner.database.logs
    many = owner.broadcasts.BroadcastMany()
    await many.write(many_of(1))
    await many.read()

    appending = asyncio.Event()

    async def append_never(_: object) -> None:
        appending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(log, "append", append_never)
    publishing = asyncio.create_task(owner.publish("cake"))
    await appending.wait()
    owner.database.revoke()
    assert (await ended(many))[0] == "ROUTER_UNAVAILABLE"
    # Without details, as nobody knows whether it is in the log.
    assert await publishing == "UNAVAILABLE"
    assert await owner.publish("milk") == "ROUTER_STANDBY"
    assert await owner.health() == "NOT_SERVING"
    with pytest.raises(LogUnavailable):
        await log.heads([])
    await asyncio.wait_for(owner.database.lease.released.wait(), PATIENCE_S)


async def test_a_router_that_owns_the_log_again_knows_what_is_in_it_and_nothing_else(owner: Running) -> None:
    await owner.publish("tea")
    owner.database.revoke()
    await owner.until("NOT_SERVING")
    owner.database.free.set()
    await owner.until("SERVING")
    assert len(owner.database.logs) == 2
    assert await owner.publish("milk") == "OK"
    assert await owner.texts() == ["tea", "milk"]


async def test_a_standby_refuses_every_call(standby: Running) -> None:
    router = InProcessRouter(None, None, None, "", standby.channel)  # type: ignore[arg-type]
    for name, method in METHODS.items():
        first = opening(name, TENANT) if method.client_streaming else request_for(method, TENANT)
        if name != "Link":
            assert await router.code(name, first) == "ROUTER_STANDBY", name
    link = standby.edges.Link()
    assert (await ended(link))[0] == "ROUTER_STANDBY"
    assert await standby.health() == "NOT_SERVING"
    assert await standby.health("") == "SERVING"
    unknown = standby.channel.unary_unary("/trunkline.v1.NoService/Nothing")
    assert (await ended(unknown(b"")))[0] == "UNIMPLEMENTED"


async def test_a_standby_takes_over_once_the_log_is_free(standby: Running) -> None:
    standby.database.free.set()
    await standby.until("SERVING")
    assert await standby.publish("tea") == "OK"


@pytest.mark.parametrize("operation", ["registered", "register"])
async def test_a_router_stops_while_its_log_does_not_answer_the_start(
    operation: str, database: ScriptedDatabase, tmp_path: Path
) -> None:
    waits = asyncio.Event()

    async def answer_never(*_: object) -> None:
        waits.set()
        await asyncio.Event().wait()

    stop = asyncio.Event()
    async with running(database, tmp_path, stop):
        database.opened = lambda log: setattr(log, operation, answer_never)
        database.free.set()
        await asyncio.wait_for(waits.wait(), PATIENCE_S)
        stop.set()
        await asyncio.wait_for(database.lease.released.wait(), PATIENCE_S)


async def test_an_invalid_tenants_file_does_not_end_a_takeover(
    database: ScriptedDatabase, tmp_path: Path
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenants.acme]")
    async with running(database, tmp_path, tenants_file=file) as standby:
        file.write_text("[tenants.acme")
        database.free.set()
        await standby.until("SERVING")
    with pytest.raises(StartError):
        Router(RouterSettings(data_dir=tmp_path, tenants_file=file), [])


async def test_a_log_that_cannot_be_loaded_is_tried_again(database: ScriptedDatabase, tmp_path: Path) -> None:
    failures = iter([LogUnavailable("the database went away"), LogUnavailable("again")])

    def opened(log: Any) -> None:
        database.logs.append(log)
        registered = log.registered

        async def fail_at_first() -> Any:
            if failure := next(failures, None):
                raise failure
            return await registered()

        log.registered = fail_at_first

    database.opened = opened
    database.free.set()
    async with running(database, tmp_path) as router:
        assert await router.publish("tea") == "OK"
    assert len(database.logs) == 3
