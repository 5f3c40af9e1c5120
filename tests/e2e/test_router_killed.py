"""A router killed with SIGKILL repeatedly while many messages are in flight."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.long

KILLS = 4
IN_FLIGHT = 24
RETRIES = 200


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("killed"), edges=2) as started:
        yield started


async def send_until(client: RecordingClient, stop: asyncio.Event) -> None:
    """Send messages, up to IN_FLIGHT at a time."""
    number = 0
    while not stop.is_set():
        if len(client.unacked) < IN_FLIGHT:
            number += 1
            await client.say(f"{client.user} says {number}")
        await asyncio.sleep(0)
        if number % 8 == 0:
            await asyncio.sleep(0.002)


def acks_of(clients: list[RecordingClient]) -> int:
    """Return the number of acked messages."""
    return sum(client.acks for client in clients)


def has_unacked(clients: list[RecordingClient]) -> bool:
    """Return whether messages are waiting for their acks."""
    return any(client.unacked for client in clients)


def edges_of(fleet: Fleet) -> list[str]:
    return [process.address for process in fleet.processes if process.name == "edge"]


async def test_a_killed_router_loses_duplicates_and_reorders_nothing(fleet: Fleet) -> None:
    history, stop = History(), asyncio.Event()
    edges = edges_of(fleet)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                RecordingClient(history, f"demo/{name}", edges[index % 2], "group:hot")
            )
            for index, name in enumerate(("ann", "bob", "cid", "dan", "eve", "fay"))
        ]
        talking = [asyncio.create_task(send_until(client, stop)) for client in clients[:4]]
        for _ in range(KILLS):
            wanted = acks_of(clients) + random.randint(50, 400)
            await wait_until(lambda: acks_of(clients) >= wanted and has_unacked(clients), "the moment")  # noqa: B023
            await fleet.restart_router()
        stop.set()
        await asyncio.gather(*talking)
        await wait_until_caught_up(fleet, clients)
        assert not any(client.closed for client in clients), "the edges keep their sockets"
        assert_promises_kept(fleet, history, clients)


async def test_clients_that_connect_while_the_router_is_down_wait_for_it(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edges_of(fleet)[0], "group:away") as ann:
        await ann.next("ack", id=await ann.say("before"))
        fleet.router.kill()
        await ann.say("while it is away")
        bob = RecordingClient(history, "demo/bob", edges_of(fleet)[1], "group:away")
        coming = asyncio.create_task(bob.connect())
        await asyncio.to_thread(fleet.start_router)
        assert (await coming)["type"] == "connected"
        await wait_until_caught_up(fleet, [ann])
        await bob.say("after")
        await wait_until_caught_up(fleet, [ann, bob])
        assert_promises_kept(fleet, history, [ann, bob])
        await bob.leave()


async def test_signals_that_live_end_although_the_router_was_killed(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edges_of(fleet)[0], "group:typing") as ann,
        RecordingClient(history, "demo/bob", edges_of(fleet)[1], "group:typing") as bob,
    ):
        await ann.send({"type": "signal", "name": "typing", "ttl_ms": 1000})
        for name in ("looking", "waving"):
            await ann.send({"type": "signal", "name": name, "ttl_ms": 300_000})
        await bob.next("signal", name="looking")
        await bob.next("signal", name="waving")
        fleet.router.kill()
        await bob.next("signal", name="typing", ttl_ms=1000)
        await bob.next("signal", name="typing", end="expired")
        await asyncio.to_thread(fleet.start_router)
        # The new router knows no signal: ann's edge has sent it what lives.
        for name in ("looking", "waving"):
            assert (await bob.next("signal", name=name))["ttl_ms"] < 300_000
        await ann.send({"type": "signal", "name": "looking", "end": "stopped"})
        await bob.next("signal", name="looking", end="stopped")
        async with RecordingClient(history, "demo/cid", edges_of(fleet)[1], "group:typing") as cid:
            await cid.next("signal", name="waving", user="ann")
        await wait_until_caught_up(fleet, [ann, bob])
        assert_promises_kept(fleet, history, [ann, bob])


async def test_a_backend_that_retries_over_a_kill_creates_each_message_once(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edges_of(fleet)[0], "group:keys") as ann:

        def say_all() -> None:
            with GrpcBackend(fleet.router.address, history) as backend:
                for number in range(300):
                    broadcast_until_accepted(backend, f"key-{number}", f"text {number}")

        saying = asyncio.create_task(asyncio.to_thread(say_all))
        for count in (60, 140):
            await wait_until(lambda: ann.seq() >= count, f"{count} messages")  # noqa: B023
            await fleet.restart_router()
        await saying
        await wait_until_caught_up(fleet, [ann])
        assert ann.seq() == 300
        history.events = [e for e in history.events if getattr(e, "code", None) != ""]
        assert_promises_kept(fleet, history, [ann])


def broadcast_until_accepted(backend: GrpcBackend, key: str, text: str) -> None:
    """Broadcast until it succeeds; fail on any error that the kill does not explain."""
    for _ in range(RETRIES):
        try:
            backend.broadcast("demo/echo/web/group:keys", text, key)
            return
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
    raise AssertionError(f"{key} was not taken in {RETRIES} attempts")
