"""Failover to an asynchronous standby, which lacks commits: clients are notified of the loss."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.polling import wait_until
from tests.e2e.postgres.standby_fleet import StandbyFleet, standby_fleet
from tests.e2e.recording_client import RecordingClient
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, linux
from tests.validators.history import History

pytestmark = [linux, pytest.mark.long]

GROUP = "group:gone"


@contextmanager
def fleet_with_async_standby(
    folder: Path, routers: int
) -> Iterator[tuple[StandbyFleet, PostgresServer, PostgresServer]]:
    with PostgresServer.create() as primary:
        standby = primary.base_backup()
        both = f"{primary.address},{standby.address}"
        with standby_fleet(folder, primary.dsn("public", address=both), routers=routers) as fleet:
            yield fleet, primary, standby


def cut_off(primary: PostgresServer, standby: PostgresServer) -> None:
    """End the replication, once the standby has all commits so far."""
    primary.wait_for("SELECT FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()")
    standby.configure(primary_conninfo="host=127.0.0.1 port=1")
    primary.wait_for("SELECT WHERE NOT EXISTS (TABLE pg_stat_replication)")


async def say(client: RecordingClient, *texts: str) -> None:
    for text in texts:
        await client.say(text)
    await wait_until(lambda: not client.unacked, "all messages are acked")


async def check_loss_is_shown(
    fleet: StandbyFleet, primary: PostgresServer, standby: PostgresServer, *, sleeper: Process | None
) -> None:
    """Lose commits in a failover; nobody is connected meanwhile, so that no edge knows of them.

    The `sleeper` sleeps until another router has taken over.
    """
    edge = fleet.edges[0].address
    async with RecordingClient(History(), "demo/bob", edge, GROUP) as bob:
        await say(bob, "kept")
        await asyncio.to_thread(cut_off, primary, standby)
        await say(bob, "lost", "lost, too")
    if sleeper is not None:
        sleeper.signal(signal.SIGSTOP)
    await asyncio.to_thread(primary.crash)
    await asyncio.to_thread(standby.promote)
    if sleeper is not None:
        await asyncio.to_thread(lambda: fleet.await_owner(but=sleeper))
        sleeper.signal(signal.SIGCONT)
    await wait_until(
        lambda: "lacks commits" in fleet.logs() and "has lost commits" in fleet.logs(), "the loss is noticed"
    )
    await asyncio.to_thread(fleet.await_owner)
    # The log is longer than bob's position again.
    async with RecordingClient(History(), "demo/ann", edge, GROUP) as ann:
        await say(ann, *map(str, range(5)))
        assert (await bob.connect(resume=True))["recovered"] is False
        await bob.leave()


async def test_a_router_notices_that_its_last_commits_are_gone(tmp_path: Path) -> None:
    with fleet_with_async_standby(tmp_path, 1) as (fleet, primary, standby):
        await check_loss_is_shown(fleet, primary, standby, sleeper=None)


async def test_a_former_owner_notices_that_its_last_commits_are_gone(tmp_path: Path) -> None:
    """The successor cannot know that they were committed."""
    with fleet_with_async_standby(tmp_path, 2) as (fleet, primary, standby):
        await check_loss_is_shown(fleet, primary, standby, sleeper=fleet.await_owner())
