"""A log that cannot be written for a while: every acked message is stored."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend, reason_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept, wait_until_caught_up
from tests.e2e.recording_client import RecordingClient
from tests.support.processes import Process, linux
from tests.validators.history import History, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux

PATIENCE = 400


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("full")) as started:
        yield started


def limit_files(process: Process, size: int) -> None:
    """Simulate a full disk: no file of the process may grow beyond `size`."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def edge_of(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


def rejected_ids(history: History) -> set[str]:
    return {event.id for event in history.of(Rejected) if event.code == "LOG_UNAVAILABLE"}


async def fill(client: RecordingClient, history: History) -> None:
    """Send until the log rejects ten messages in a row."""
    in_a_row = 0
    for number in range(PATIENCE):
        ident = await client.say(f"{number} " + "x" * 8000)
        await wait_until(lambda: ident not in client.unacked or ident in rejected_ids(history), "an answer")  # noqa: B023
        in_a_row = in_a_row + 1 if ident in client.unacked else 0
        if in_a_row == 10:
            return
    raise AssertionError("the log never rejected a message")


async def test_clients_and_backends_get_a_retryable_error_while_the_disk_is_full(fleet: Fleet) -> None:
    history = History()
    with GrpcBackend(fleet.router.address, history) as backend:
        async with (
            RecordingClient(history, "demo/ann", edge_of(fleet), "group:full") as ann,
            RecordingClient(history, "demo/bob", edge_of(fleet), "group:full") as bob,
        ):
            limit_files(fleet.router, 300_000)
            await fill(ann, history)
            error = await ann.next("error")
            assert (error["code"], error["retryable"], error["retry_after_ms"]) == (
                "LOG_UNAVAILABLE",
                True,
                1000,
            )
            with pytest.raises(grpc.RpcError) as refusal:
                backend.broadcast(ann.home, "from a backend", "key")
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(refusal.value) == "LOG_UNAVAILABLE"
            assert len(backend.messages(ann.home)) == ann.acks, "the log can still be read"
            limit_files(fleet.router, resource.RLIM_INFINITY)
            for ident in list(ann.unacked):
                await ann.resend(ident)
            backend.broadcast(ann.home, "from a backend", "key")
            await wait_until_caught_up(fleet, [ann, bob])
            assert not ann.closed
            assert_promises_kept(fleet, history, [ann, bob])


async def test_messages_acked_around_a_full_disk_survive_a_kill(fleet: Fleet) -> None:
    history = History()
    async with (
        RecordingClient(history, "demo/ann", edge_of(fleet), "group:full") as ann,
        RecordingClient(history, "demo/bob", edge_of(fleet), "group:full") as bob,
    ):
        for size in (200_000, 400_000):
            limit_files(fleet.router, size)
            await fill(ann, history)
            await fleet.restart_router()
            for ident in list(ann.unacked):
                await ann.resend(ident)
            await wait_until(lambda: not ann.unacked, "all messages are acked")
        await wait_until_caught_up(fleet, [ann, bob])
        assert_promises_kept(fleet, history, [ann, bob])


async def test_a_router_stops_cleanly_while_the_disk_is_full(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/ann", edge_of(fleet), "group:full") as ann:
        limit_files(fleet.router, 200_000)
        await fill(ann, history)
        assert await asyncio.to_thread(fleet.router.terminate) == 0
