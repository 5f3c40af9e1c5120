"""Two routers on one database: clients lose and repeat nothing, whichever of them owns the log."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tests.e2e.chaos import ask_and_check, client
from tests.e2e.postgres.client_load import load_on
from tests.e2e.postgres.router_faults import (
    crash_server,
    freeze_owner,
    kill_owner,
    lose_database,
    owner_of,
    stall,
)
from tests.e2e.postgres.standby_fleet import StandbyFleet
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import PostgresServer
from tests.support.processes import linux

pytestmark = [linux, pytest.mark.long]

#: `make stress` has more rounds.
ROUNDS = 2


async def test_a_router_that_wakes_after_its_lease_neither_answers_nor_writes(fleet: StandbyFleet) -> None:
    rng = Random()
    async with load_on(fleet) as load:
        for _ in range(ROUNDS):
            await load.await_acks(rng.randint(20, 200))
            await freeze_owner(load)


async def test_a_killed_owner_is_replaced_and_comes_back_as_standby(fleet: StandbyFleet) -> None:
    async with load_on(fleet) as load:
        await kill_owner(load)
        successor = await owner_of(fleet)
        await load.await_acks(50)
        assert await owner_of(fleet) is successor


async def test_streamed_replies_go_on_at_the_router_that_takes_over(fleet: StandbyFleet) -> None:
    workers = [await asyncio.to_thread(fleet.start_chaos_worker) for _ in range(2)]
    async with load_on(fleet, users=2) as load, client(fleet.edges[0].address, "ann", "group:ann") as asker:
        asking = [asyncio.create_task(ask_and_check(asker, f"150 from ann, {number}")) for number in range(3)]
        await load.await_acks(50)
        await freeze_owner(load)
        await asyncio.gather(*asking)
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("fault", ["cut", "refused", "silent", "crashed", "restarted", "frozen"])
async def test_clients_wait_while_the_database_is_away(
    fleet: StandbyFleet, server: PostgresServer, database: FaultProxy, fault: str
) -> None:
    async with load_on(fleet) as load:
        match fault:
            case "cut":
                database.cut()
            case "refused":
                await lose_database(database, 2 * fleet.lease_s)
            case "silent":
                await stall(database, 2 * fleet.lease_s)
            case "crashed":
                await crash_server(server)
            case "restarted":
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            case "frozen":
                server.freeze()
                await asyncio.sleep(2 * fleet.lease_s)
                server.thaw()
        await load.await_acks(50)
