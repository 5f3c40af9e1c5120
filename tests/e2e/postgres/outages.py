"""Outages of the database that are longer than the ownership lease, of a router without a standby."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.e2e.postgres.client_load import load_on
from tests.e2e.postgres.router_faults import lose_database, stall
from tests.e2e.postgres.standby_fleet import standby_fleet
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from tests.support.processes import Process

LEASE_S = 5.0
OUTAGE_S = 10.0


async def run_outages(folder: Path, rng: Random, history: list[str], rounds: int) -> None:
    """Lose the database again and again under load; the edge keeps its link.

    Raises:
        AssertionError: a promise was broken, or the edge linked again.
    """
    with ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, PostgresServer.create())
        database = stack.enter_context(FaultProxy(server.address))
        dsn = server.dsn("public", address=database.address)
        env = {"TRUNKLINE_OWNERSHIP_LEASE_S": str(LEASE_S)}
        started = standby_fleet(folder, dsn, routers=1, **env)
        fleet = await asyncio.to_thread(stack.enter_context, started)
        (edge,) = fleet.edges
        async with load_on(fleet) as load:
            links = links_of(edge)
            for _ in range(rounds):
                fault = rng.choice([lose_database, stall])
                history.append(fault.__name__)
                await load.await_acks(rng.randint(1, 300))
                await fault(database, OUTAGE_S)
                await load.await_acks(50)
                assert links_of(edge) == links, edge.stderr


def links_of(edge: Process) -> int:
    """Return how often an edge has linked to a router."""
    return edge.stderr.count("linked to a router")
