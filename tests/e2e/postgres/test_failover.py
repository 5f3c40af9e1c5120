"""Failover of the database to a synchronous standby loses nothing that was acked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.e2e.postgres.client_load import load_on
from tests.e2e.postgres.outages import links_of
from tests.e2e.postgres.standby_fleet import StandbyFleet, standby_fleet
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import under_load
from tests.support.postgres import PostgresServer
from tests.support.processes import linux

pytestmark = [linux, pytest.mark.long]

#: From the end of the promotion to the next ack.
FAILOVER_S = 5.0


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with PostgresServer.create() as server:
        yield server


@pytest.fixture
def standby(primary: PostgresServer) -> PostgresServer:
    return primary.base_backup(synchronous=True)


@pytest.fixture
def database(primary: PostgresServer) -> Iterator[FaultProxy]:
    with FaultProxy(primary.address) as proxy:
        yield proxy


@pytest.fixture
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    primary: PostgresServer,
    standby: PostgresServer,
    database: FaultProxy,
) -> Iterator[StandbyFleet]:
    hosts = f"{database.address},{standby.address}"
    dsn = primary.dsn("public", address=hosts, target_session_attrs="primary")
    with standby_fleet(tmp_path_factory.mktemp("failover"), dsn, routers=1) as started:
        yield started


async def test_the_database_is_lost_and_its_synchronous_standby_promoted(
    fleet: StandbyFleet, primary: PostgresServer, standby: PostgresServer, database: FaultProxy
) -> None:
    links = links_of(fleet.edges[0])
    async with load_on(fleet) as load:
        # An outage longer than the lease first.
        database.refuse()
        await asyncio.sleep(2 * fleet.lease_s)
        database.accept()
        await load.await_acks(50)
        await asyncio.to_thread(primary.crash)
        await asyncio.to_thread(standby.promote)
        began = time.monotonic()
        await load.await_acks(1)
        assert time.monotonic() - began < under_load(FAILOVER_S)
        await load.await_acks(50)
    assert links_of(fleet.edges[0]) == links, "the edge kept its link"
