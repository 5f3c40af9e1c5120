"""Faults of two routers on one database, chosen at random, while clients send and workers answer."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.e2e.postgres.client_load import ClientLoad, load_on
from tests.e2e.postgres.standby_fleet import standby_fleet
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from random import Random

    from tests.e2e.postgres.standby_fleet import StandbyFleet
    from tests.support.processes import Process


class RouterFaults:
    """Injects faults into routers, and into their way to the database."""

    def __init__(self, rng: Random, history: list[str]) -> None:
        self._rng = rng
        self._history = history

    async def run(self, folder: Path, rounds: int) -> None:
        """Run a fleet, inject faults, and check every promise.

        Raises:
            AssertionError: a promise was broken.
        """
        with ExitStack() as stack:
            server = await asyncio.to_thread(lambda: stack.enter_context(PostgresServer.create()))
            database = stack.enter_context(FaultProxy(server.address))
            dsn = server.dsn("public", address=database.address)
            started = standby_fleet(folder, dsn, edges=2)
            fleet = await asyncio.to_thread(stack.enter_context, started)
            faults: list[Callable[[ClientLoad], Awaitable[object]]] = [
                freeze_owner,
                freeze_owner,
                kill_owner,
                lambda load: lose_database(load, database, self._rng.uniform(0, 2) * load.fleet.lease_s),
                lambda load: stall_database(load, database, self._rng.uniform(0, 2) * load.fleet.lease_s),
                lambda _: crash_server(server),
            ]
            async with load_on(fleet) as load:
                for _ in range(rounds):
                    await load.await_acks(self._rng.randint(1, 300))
                    fault = self._rng.choice(faults)
                    self._history.append(fault.__name__)
                    await fault(load)
                    await load.await_acks(50)


async def freeze_owner(load: ClientLoad) -> Process:
    """Stop the owner until another router has taken over, and wake it; return the new owner."""
    fleet = load.fleet
    owner = await owner_of(fleet)
    owner.signal(signal.SIGSTOP)
    try:
        successor = await asyncio.to_thread(lambda: fleet.await_owner(but=owner))
        await load.await_acks(50)
    finally:
        owner.signal(signal.SIGCONT)
    await load.await_acks(50)
    assert owner.running, owner.stderr
    assert await owner_of(fleet) is successor, "the former owner took the log back"
    return successor


async def kill_owner(load: ClientLoad) -> None:
    """Kill the owner; when another router has taken over, start it again."""
    fleet = load.fleet
    owner = await owner_of(fleet)
    owner.kill()
    await load.await_acks(50)
    await asyncio.to_thread(fleet.start_named, fleet.name_of(owner))


async def lose_database(load: ClientLoad, database: FaultProxy, seconds: float) -> None:
    """Cut the connections to the database, and refuse others for a time."""
    database.refuse()
    await asyncio.sleep(seconds)
    database.accept()


async def stall_database(load: ClientLoad, database: FaultProxy, seconds: float) -> None:
    """Let nothing pass to the database and back for a time."""
    database.stall()
    await asyncio.sleep(seconds)
    database.resume()


async def crash_server(server: PostgresServer) -> None:
    """Crash the database's server, and start it again."""
    await asyncio.to_thread(server.crash)
    await asyncio.to_thread(server.start)


async def owner_of(fleet: StandbyFleet) -> Process:
    """Wait until a router owns the log; return it."""
    return await asyncio.to_thread(fleet.await_owner)
