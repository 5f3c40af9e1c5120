"""Faults of two routers on one database, chosen at random, while clients send and workers answer."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.e2e.chaos import ask_and_check, client
from tests.e2e.postgres.client_load import ClientLoad, load_on
from tests.e2e.postgres.standby_fleet import standby_fleet
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import under_load
from tests.support.postgres import PostgresServer
from tests.support.postgres_binaries import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from random import Random

    from tests.e2e.postgres.standby_fleet import StandbyFleet
    from tests.support.fault_proxy import Direction
    from tests.support.processes import Process

#: Words of each answer that workers stream, two in 40 ms.
WORDS = 60


class RouterFaults:
    """A fleet, and the faults of its routers, its links and its database."""

    def __init__(self, rng: Random, history: list[str]) -> None:
        self._rng = rng
        self._history = history
        self._stack = ExitStack()

    async def run(self, folder: Path, rounds: int) -> None:
        """Inject faults one after the other, then check every promise.

        Raises:
            AssertionError: a promise was broken.
        """
        with self._stack:
            version = self._rng.choice(list(VERSIONS))
            self._history.append(f"PostgreSQL {version}")
            self._server = await asyncio.to_thread(self._stack.enter_context, PostgresServer.create(version))
            await asyncio.to_thread(lambda: self._server.base_backup(synchronous=True))
            self._database = self._stack.enter_context(FaultProxy(self._server.address))
            dsn = self._server.dsn("public", address=self._database.address)
            # Replies outlast each fault.
            env = {"TRUNKLINE_REPLY_LEASE_S": str(under_load(60))}
            started = standby_fleet(folder, dsn, edges=2, **env)
            fleet = await asyncio.to_thread(self._stack.enter_context, started)
            for _ in range(2):
                await asyncio.to_thread(fleet.start_chaos_worker)
            async with load_on(fleet) as load, asyncio.TaskGroup() as tasks:
                for number in range(rounds):
                    question = f"{WORDS} words, {number}"
                    tasks.create_task(self._ask(fleet.edges[number % 2].address, question))
                    await load.await_acks(self._rng.randint(1, 300))
                    await self._fault(load)
                    await load.await_acks(50)

    async def _ask(self, edge: str, question: str) -> None:
        async with client(edge, "ann", "group:questions") as asker:
            await ask_and_check(asker, question)

    async def _fault(self, load: ClientLoad) -> None:
        seconds = self._rng.uniform(0, 2) * load.fleet.lease_s
        direction: Direction = self._rng.choice(["to_server", "to_client"])
        faults: dict[str, Callable[[], Awaitable[object]]] = {
            "freeze the owner": lambda: freeze_owner(load),
            "kill the owner": lambda: kill_owner(load),
            f"lose the database for {seconds:.1f} s": lambda: lose_database(self._database, seconds),
            f"stall the database for {seconds:.1f} s": lambda: stall(self._database, seconds),
            f"stall the database {direction} for {seconds:.1f} s": lambda: stall(
                self._database, seconds, direction
            ),
            "crash the database": lambda: crash_server(self._server),
            "fail over": self._fail_over,
            "cut the owner's links": lambda: cut_links(load.fleet),
            f"stall the owner's links {direction} for {seconds:.1f} s": lambda: stall_links(
                load.fleet, seconds, direction
            ),
        }
        name = self._rng.choice(list(faults))
        self._history.append(name)
        await faults[name]()

    async def _fail_over(self) -> None:
        (standby,) = self._server.standbys
        await asyncio.to_thread(self._server.crash)
        await asyncio.to_thread(standby.promote)
        self._server = standby
        self._database.redirect(standby.address)
        await asyncio.to_thread(lambda: standby.base_backup(synchronous=True))


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


async def lose_database(database: FaultProxy, seconds: float) -> None:
    """Cut the connections to the database, and refuse others for a time."""
    database.refuse()
    await asyncio.sleep(seconds)
    database.accept()


async def stall(proxy: FaultProxy, seconds: float, *directions: Direction) -> None:
    """Let nothing pass for a time, by default in both directions."""
    proxy.stall(*directions)
    await asyncio.sleep(seconds)
    proxy.resume()


async def cut_links(fleet: StandbyFleet) -> None:
    """Reset all connections to the owner."""
    fleet.links[fleet.name_of(await owner_of(fleet))].cut()


async def stall_links(fleet: StandbyFleet, seconds: float, direction: Direction) -> None:
    """Let nothing pass to the owner, or from it, for a time."""
    await stall(fleet.links[fleet.name_of(await owner_of(fleet))], seconds, direction)


async def crash_server(server: PostgresServer) -> None:
    """Crash the database's server, and start it again."""
    await asyncio.to_thread(server.crash)
    await asyncio.to_thread(server.start)


async def owner_of(fleet: StandbyFleet) -> Process:
    """Wait until a router owns the log; return it."""
    return await asyncio.to_thread(fleet.await_owner)
