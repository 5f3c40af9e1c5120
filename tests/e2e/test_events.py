"""Event streams with real routers, edges and workers."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.e2e.recording_event_client import RecordingEventClient
from tests.e2e.roaming_clients import listen_and_reconnect, send_and_reconnect
from tests.e2e.streaming_worker import StreamingWorker
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

MANY = 250
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("events")
    tenants = folder / "tenants.toml"
    tenants.write_text('[tenants.locked]\ntokens = ["secret"]\n')
    env = {"TRUNKLINE_TENANTS": "demo,acme", "TRUNKLINE_TENANTS_FILE": str(tenants)}
    with fleet_of(folder, edges=2, **env) as started:
        yield started


def edges_of(fleet: Fleet) -> list[Process]:
    return [process for process in fleet.processes if process.name == "edge" and process.running]


async def test_a_listener_receives_the_messages_of_all_its_topics(fleet: Fleet) -> None:
    history = History()
    edge = edges_of(fleet)[0].address
    with GrpcBackend(fleet.router.address, history) as backend:
        async with (
            RecordingClient(history, "demo/ann", edge) as ann,
            RecordingEventClient(history, "demo/bob", edge) as bob,
        ):
            await ann.say("hello\nthere")
            broad = ("demo", "demo/echo", "demo/echo/web", "demo/user:bob")
            for to in broad:
                backend.broadcast(to, f"to {to}", key=f"k-{to}")
            await wait_until(lambda: len(bob.inbox) == 5, "bob has all")
            assert bob.last_id.count("~") == 4
            assert [stand.rpartition(".")[2] for stand in bob.last_id.split("~")] == ["1"] * 5
            await wait_until_caught_up(fleet, [ann, bob])
            backend.read_logs(*broad)
            assert_promises_kept(fleet, history, [ann, bob])


async def test_the_request_in_the_documentation_is_answered(fleet: Fleet) -> None:
    [path] = re.findall(r"curl -N 'http://127.0.0.1:8080(\S+)'", PAGE.read_text("utf-8"))
    url = f"http://{edges_of(fleet)[0].address}{path}"
    async with httpx.AsyncClient(trust_env=False) as http, http.stream("GET", url) as response:
        assert await anext(response.aiter_lines()) == "event: connected"


async def test_a_streamed_reply_continues_after_the_listener_resumes(fleet: Fleet) -> None:
    history = History()
    near, far = (edge.address for edge in edges_of(fleet))
    async with (
        RecordingClient(history, "demo/ann", near, "person:ann") as ann,
        RecordingEventClient(history, "demo/ann", near, "person:ann") as screen,
        StreamingWorker(fleet.router.address) as producer,
    ):
        await ann.say("question")
        delivery = await producer.wait_for_delivery("question")
        number, opened = await producer.open(delivery.message.id, delivery_id=delivery.delivery_id)
        ident = opened.message.id
        await producer.add(number, 0, "It ", "depends")
        await wait_until(lambda: screen.texts.text.get(ident) == "It depends", "the added text arrives")
        screen.abort()
        await wait_until(lambda: screen.closed, "it is cut")
        await producer.add(number, 2, " on")
        screen.edge = far
        assert (await screen.connect(resume=True))["recovered"] is True
        await producer.add(number, 3, " it.")
        await producer.end(number, 4)
        await producer.settle(delivery.delivery_id)
        for client in (ann, screen):
            await wait_until(lambda: client.texts.state.get(ident) == "complete", "it has ended")  # noqa: B023
            assert client.texts.text[ident] == "It depends on it."
        await wait_until_caught_up(fleet, [ann])
        assert_promises_kept(fleet, history, [ann, screen])


async def test_listeners_of_killed_edges_resume_on_other_edges_by_their_last_id(tmp_path: Path) -> None:
    history, stop = History(), asyncio.Event()
    with fleet_of(tmp_path, edges=2, TRUNKLINE_LEASE_S="1") as fleet:
        edges = [edge.address for edge in edges_of(fleet)]
        async with AsyncExitStack() as stack:
            senders = [
                await stack.enter_async_context(
                    RecordingClient(history, f"demo/{name}", edges[index], "group:hot")
                )
                for index, name in enumerate(("ann", "bob"))
            ]
            listeners = [
                await stack.enter_async_context(
                    RecordingEventClient(history, f"demo/{name}", edges[index % 2], "group:hot")
                )
                for index, name in enumerate(("cid", "dan", "eve"))
            ]
            tasks = [asyncio.create_task(send_and_reconnect(each, edges, stop)) for each in senders]
            tasks += [asyncio.create_task(listen_and_reconnect(each, edges, stop)) for each in listeners]
            for count in (60, 150):
                await wait_until(lambda: min(each.seq() for each in listeners) > count, f"{count}")  # noqa: B023
                doomed = edges_of(fleet)[0]
                doomed.kill()
                again = {"TRUNKLINE_EDGE_LISTEN": doomed.address}
                await asyncio.to_thread(lambda: fleet.start_edge(**again))  # noqa: B023
                listeners[2].abort()
            await wait_until(lambda: min(each.seq() for each in listeners) > 250, "250 messages")
            stop.set()
            await asyncio.gather(*tasks)
            for each in [*senders, *listeners]:
                if each.closed:
                    await each.reconnect(edges)
            await wait_until_caught_up(fleet, [*senders, *listeners])
            assert len({session for e in history.events if (session := getattr(e, "session", ""))}) > 9
            assert_promises_kept(fleet, history, [*senders, *listeners])


async def test_listeners_and_websockets_of_one_topic_receive_the_same_frames(fleet: Fleet) -> None:
    histories = History()
    near, far = (edge.address for edge in edges_of(fleet))
    async with AsyncExitStack() as stack:
        kinds = (RecordingEventClient, RecordingClient)
        crowd = [
            kinds[n % 2](histories, f"demo/u{n}", (near, far)[n // 2 % 2], "group:crowd")
            for n in range(2 * MANY)
        ]
        for start in range(0, len(crowd), 50):
            await asyncio.gather(*(stack.enter_async_context(each) for each in crowd[start : start + 50]))
        assert metric(edges_of(fleet)[0], "trunkline_edge_connections") >= MANY
        with GrpcBackend(fleet.router.address, histories) as backend:
            for number in range(10):
                backend.broadcast(crowd[0].home, f"message {number}", key=f"c{number}")
            await wait_until(lambda: all(each.seq() == 10 for each in crowd), "all clients are up to date")
            frames = {tuple(map(repr, each.inbox)) for each in crowd}
            assert len(frames) == 1
            assert_promises_kept(fleet, histories, crowd)


@pytest.mark.parametrize(
    ("name", "options", "status", "reason"),
    [
        ("nobody/ann", {}, 404, "UNKNOWN_TENANT"),
        ("demo/a b", {}, 400, "INVALID_ADDRESS"),
        ("demo/ann", {"rollup_ms": "x"}, 400, "INVALID_ADDRESS"),
        ("locked/ann", {}, 401, "UNAUTHORIZED"),
        ("locked/ann", {"token": "wrong"}, 401, "UNAUTHORIZED"),
        ("locked/ann", {"token": "secret"}, 200, ""),
    ],
)
async def test_an_unauthorized_listener_gets_an_http_status(
    fleet: Fleet, name: str, options: dict[str, str], status: int, reason: str
) -> None:
    listener = RecordingEventClient(History(), name, edges_of(fleet)[0].address, **options)
    try:
        answer = await listener.connect()
        assert listener.status == status
        assert status == 200 or answer["details"][0]["reason"] == reason
    finally:
        await listener.leave()


async def test_listeners_of_a_stopping_edge_are_notified_and_resume(fleet: Fleet) -> None:
    history = History()
    edge = await asyncio.to_thread(lambda: fleet.start_edge(TRUNKLINE_DRAIN_S="0.1"))
    async with (
        RecordingClient(history, "demo/ann", edges_of(fleet)[0].address, "group:drain") as ann,
        RecordingEventClient(history, "demo/bob", edge.address, "group:drain") as bob,
    ):
        await ann.say("before")
        await bob.next("message")
        assert await asyncio.to_thread(edge.terminate) == 0
        await wait_until(lambda: bob.closed, "bob is notified")
        assert bob.closing["reason"] == "RESTARTING"
        await ann.say("meanwhile")
        await wait_until(lambda: not ann.unacked, "it is acked")
        bob.edge = edges_of(fleet)[1].address
        assert (await bob.connect(resume=True))["recovered"] is True
        await wait_until_caught_up(fleet, [ann, bob])
        assert_promises_kept(fleet, history, [ann, bob])
