"""An owner stays the owner through an outage of the database, and is unsure meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from trunkline_router.log.postgres.database import PostgresDatabase

from tests.e2e.polling import wait_until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.postgres import shared_server

LEASE_S = 0.5


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(shared_server().address) as proxy:
        yield proxy


@pytest.mark.parametrize("fault", ["refuse", "stall"])
async def test_a_lease_is_renewed_after_an_outage_that_was_longer(proxy: FaultProxy, fault: str) -> None:
    server = shared_server()
    dsn = server.fresh_schema().replace(server.address, proxy.address)
    database = PostgresDatabase(dsn, lease_s=LEASE_S)
    log, lease = await database.acquire(lambda: None)
    assert lease.is_valid()
    getattr(proxy, fault)()
    await wait_until(lambda: not lease.is_valid(), "the owner is unsure")
    with pytest.raises(TimeoutError):
        # Long enough for several attempts to renew.
        await asyncio.wait_for(lease.lost(), 2 * LEASE_S)
    proxy.accept()
    proxy.resume()
    await wait_until(lease.is_valid, "the owner is sure again")
    await log.close()
    await lease.release()
    await database.close()


async def test_a_bug_that_ends_the_renewals_is_not_silent(postgres_schema: str) -> None:
    log, lease = await PostgresDatabase(postgres_schema, lease_s=LEASE_S).acquire(lambda: None)
    connected: Any = lease

    async def fail() -> None:
        raise KeyError("a bug")

    connected._connected = fail
    with pytest.raises(KeyError):
        await asyncio.wait_for(lease.lost(), patient(10))
    assert not lease.is_valid()
    await log.close()
    await lease.release()
