"""Workers in other languages, written from the contract alone, at a router with TLS and API keys."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_ATTACH
from trunkline.v1.agent_service_pb2 import AttachResponse, Delivery, ReplyEnded, ReplyProgress
from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_OPEN,
    Message,
    MessageState,
    Part,
    TextPart,
)
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline.v1.tenant_service_pb2 import CreateApiKeyRequest, CreateTenantRequest
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub
from trunkline_client import Client, text_of

from tests.clients.scripted_router import scripted_router
from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import AS_OPERATOR, TIMEOUT_S
from tests.e2e.operator_client import client_auth, wait_until_known
from tests.support.certificates import Certificates, tls_env
from tests.support.go import go_program
from tests.support.node import typescript_program
from tests.support.patience import patient
from tests.support.processes import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline_client import ReplyStream

    from tests.clients.scripted_router import StreamSide

PATIENCE_S = patient(20)
WORDS = " ".join(f"word{number}" for number in range(60))
DELIVERY_LEASE_S = 2
#: When this word is written, the first ones are in the log.
PARTLY_ON_DISK = "word40"
SECRET = "a secret of acme's clients"
LINK_KEY = "a-key-for-links-in-tests"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, ours: Certificates) -> Iterator[Fleet]:
    tls = tls_env("TLS", ours.router) | {"TRUNKLINE_LINK_KEY": LINK_KEY}
    tls["TRUNKLINE_DELIVERY_LEASE_S"] = str(DELIVERY_LEASE_S)
    with fleet_of(tmp_path_factory.mktemp("data"), edges=0, **tls) as started:
        started.start_edge(TRUNKLINE_ROUTER_CA=str(ours.ca), TRUNKLINE_LINK_KEY=LINK_KEY)
        yield started


@pytest.fixture(scope="module")
def api_key(fleet: Fleet, ours: Certificates) -> str:
    """A key of the tenant acme, which is open to nobody."""
    credentials = grpc.ssl_channel_credentials(ours.ca.read_bytes())
    with grpc.secure_channel(fleet.router.address, credentials) as channel:
        tenants = TenantServiceStub(channel)
        settings = TenantSettings(client_auth=client_auth(secrets=[SECRET]))
        acme = CreateTenantRequest(tenant="acme", settings=settings)
        tenants.CreateTenant(acme, metadata=AS_OPERATOR, timeout=TIMEOUT_S)
        request = CreateApiKeyRequest(tenant="acme", name="worker", scopes=[SCOPE_ATTACH])
        key: str = tenants.CreateApiKey(request, metadata=AS_OPERATOR, timeout=TIMEOUT_S).secret
    wait_until_known("acme", *fleet.edges)
    return key


class ExampleWorker(NamedTuple):
    """One of the workers, which serves an agent of its name."""

    agent: str
    command: list[str]
    env: dict[str, str]

    def start(self, **env: str) -> Process:
        """Start it, and wait until it is attached."""
        return Process.start(self.command, self.env | env, name=self.agent, ready=bool)


def go_worker() -> list[str]:
    return [str(go_program("go_worker"))]


def typescript_worker() -> list[str]:
    return typescript_program("typescript_worker")


@pytest.fixture(scope="module", params=[go_worker, typescript_worker])
def example(request: pytest.FixtureRequest, fleet: Fleet, ours: Certificates, api_key: str) -> ExampleWorker:
    agent: str = request.param.__name__
    command = request.param()
    env = {
        "TRUNKLINE_ROUTER": fleet.router.address,
        "TRUNKLINE_TENANT": "acme",
        "TRUNKLINE_AGENT": agent,
        "TRUNKLINE_CA": str(ours.ca),
        "TRUNKLINE_API_KEY": api_key,
        "WORD_MS": "25",
    }
    return ExampleWorker(agent, command, env)


@pytest.fixture(scope="module")
def worker(example: ExampleWorker) -> Iterator[Process]:
    with example.start() as process:
        yield process


Connect = Callable[[str], Client]


@pytest.fixture
def connect(request: pytest.FixtureRequest, fleet: Fleet, example: ExampleWorker) -> Connect:
    """Make a user's client for the agent, in a conversation of the test."""

    def make(user: str) -> Client:
        return Client(
            f"ws://{fleet.edges[0].address}",
            tenant="acme",
            agent=example.agent,
            platform="web",
            conversation=f"person:{user}-{request.node.originalname}",
            user=user,
            token=SECRET,
        )

    return make


@pytest.fixture
async def ann(connect: Connect) -> AsyncGenerator[Client, None]:
    async with asyncio.timeout(PATIENCE_S), connect("ann") as client:
        yield client


@asynccontextmanager
async def running(example: ExampleWorker, **env: str) -> AsyncGenerator[Process, None]:
    """Run another process of a worker until the block ends."""
    process = await asyncio.to_thread(lambda: example.start(**env))
    try:
        yield process
    finally:
        await asyncio.to_thread(process.close)


async def until_written(reply: ReplyStream, text: str) -> None:
    """Wait until a reply that is still open contains a text."""
    async for _ in reply:
        if text in reply.text:
            break
    assert reply.state == MESSAGE_STATE_OPEN


async def assert_completed(reply: ReplyStream, text: str) -> None:
    """Wait for the end of a reply, and check that nothing of it is missing or double."""
    message = await reply.wait_until_ended()
    assert (text_of(message), message.state) == (f"You said: {text}", MESSAGE_STATE_COMPLETE)


async def test_an_answer_that_takes_longer_than_its_lease_is_not_given_to_another(
    ann: Client, example: ExampleWorker
) -> None:
    pause_ms = str(1300 * DELIVERY_LEASE_S)
    async with running(example, WORD_MS=pause_ms) as worker, ann.ask("stream slowly") as reply:
        await until_written(reply, "You")
        await reply.cancel()
        assert "stopped" not in worker.stderr


@pytest.mark.usefixtures("worker")
async def test_a_message_is_answered_whole_and_another_word_by_word(ann: Client) -> None:
    async with ann.ask("hello") as reply:
        assert text_of(await reply.wait_until_ended()) == "You said: hello"
    async with ann.ask(f"stream {WORDS}") as reply:
        await until_written(reply, "word1")
        assert "word59" not in reply.text
        await assert_completed(reply, WORDS)


async def test_a_cancel_stops_the_reply_and_the_next_message_is_answered(
    ann: Client, worker: Process
) -> None:
    async with ann.ask("stream " + WORDS * 100) as reply:
        await until_written(reply, "word3")
        await reply.cancel()
        message = await reply.wait_until_ended()
        assert message.state == MESSAGE_STATE_CANCELLED
        assert "word40" not in text_of(message)
    async with ann.ask("still there?") as reply:
        assert text_of(await reply.wait_until_ended()) == "You said: still there?"
    # The worker stopped by itself, not because the router refused the rest.
    assert "stopped" not in worker.stderr


async def test_a_reply_continues_after_its_router_was_killed(
    ann: Client, worker: Process, fleet: Fleet
) -> None:
    async with ann.ask(f"stream {WORDS}") as reply:
        await until_written(reply, PARTLY_ON_DISK)
        await fleet.restart_router()
        await assert_completed(reply, WORDS)
    assert worker.running
    assert "trying again" in worker.stderr


async def test_a_reply_continues_in_another_process_after_its_worker_was_killed(
    ann: Client, worker: Process, example: ExampleWorker
) -> None:
    async with ann.ask(f"stream {WORDS}") as reply:
        await until_written(reply, "word5")
        worker.kill()
        async with running(example):
            await assert_completed(reply, WORDS)


async def test_a_terminated_worker_finishes_its_replies_and_takes_no_more(
    ann: Client, connect: Connect, example: ExampleWorker
) -> None:
    async with running(example) as worker, connect("bob") as bob, ann.ask(f"stream {WORDS}") as reply:
        await until_written(reply, "word5")
        worker.signal(signal.SIGTERM)
        await asyncio.to_thread(worker.line, lambda line: line == "draining")
        # On the worker's stream, a word that it writes from now on is behind the drain.
        await until_written(reply, f"word{len(reply.text.split()) + 5}")
        async with bob.ask("too late?") as late:
            await assert_completed(reply, WORDS)
            assert await asyncio.to_thread(worker.wait) == 0
            assert late.message is None
            async with running(example):
                assert text_of(await late.wait_until_ended()) == "You said: too late?"


def test_a_worker_with_a_wrong_key_ends_with_the_reason(example: ExampleWorker) -> None:
    with Process(example.command, example.env | {"TRUNKLINE_API_KEY": "wrong"}, "worker", ROOT) as worker:
        assert worker.wait() == 1
        assert "not valid" in worker.stderr


@asynccontextmanager
async def scripted(example: ExampleWorker) -> AsyncGenerator[StreamSide, None]:
    """Run a worker at a router that the test plays."""
    async with scripted_router() as router:
        env = {"TRUNKLINE_ROUTER": router.address, "TRUNKLINE_CA": ""}
        with Process(example.command, example.env | env, "worker", ROOT):
            side = await router.stream()
            await side.welcome(reply_lease_s=30)
            yield side


async def test_a_worker_that_a_standby_refuses_attaches_to_the_next_router(example: ExampleWorker) -> None:
    async with asyncio.timeout(PATIENCE_S), scripted_router() as standby, scripted_router() as owner:
        env = {"TRUNKLINE_ROUTER": f"{standby.address},{owner.address}", "TRUNKLINE_CA": ""}
        with Process(example.command, example.env | env, "worker", ROOT):
            (await standby.stream()).end(catalogue.ROUTER_STANDBY)
            await (await owner.stream()).welcome()


DELIVERY = Delivery(
    delivery_id=1, attempt=1, message=Message(id="m1", parts=[Part(text=TextPart(text=f"stream {WORDS}"))])
)
REFUSED = Error(code="MESSAGE_ENDED", message="the message has ended")


@pytest.mark.parametrize(
    ("state", "refused", "outcome"),
    [(MESSAGE_STATE_CANCELLED, [REFUSED], None), (MESSAGE_STATE_EXPIRED, [], "retry")],
)
async def test_a_reply_that_the_router_ends_is_settled_by_the_reason(
    example: ExampleWorker, state: MessageState.ValueType, refused: list[Error], outcome: str | None
) -> None:
    async with asyncio.timeout(PATIENCE_S), scripted(example) as side:
        await side.write(AttachResponse(deliveries=[DELIVERY]))
        number = (await side.open_reply()).reply
        await side.read_until("deltas")
        # Deltas that were on their way are refused in the batch that reports the end.
        progress = [ReplyProgress(reply=number, error=error) for error in refused]
        await side.write(AttachResponse(ended=[ReplyEnded(reply=number, state=state)], progress=progress))
        (settlement,) = await side.read_until("settlements")
        assert settlement.WhichOneof("outcome") == outcome


async def test_a_redelivery_of_what_is_being_answered_is_answered_once(example: ExampleWorker) -> None:
    async with asyncio.timeout(PATIENCE_S), scripted(example) as side:
        await side.write(AttachResponse(deliveries=[DELIVERY]))
        number = (await side.open_reply()).reply
        await side.write(AttachResponse(deliveries=[DELIVERY]))
        await side.read_until("deltas")
        await side.send_ended(number, MESSAGE_STATE_CANCELLED)
        assert len(await side.read_until("settlements")) == 1
        other = Delivery(delivery_id=2, attempt=1, message=DELIVERY.message)
        await side.write(AttachResponse(deliveries=[other]))
        assert [each.delivery_id for each in await side.read_until("opens")] == [2]
