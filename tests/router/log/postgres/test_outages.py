"""Owners of a log whose database goes away for a while, or comes back without some commits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.postgres.database import PostgresDatabase
from trunkline_router.log.postgres.dsn import Dsn

from tests.router.log.engines import append, pending_entry
from tests.router.log.postgres.owned import query, until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient, under_load
from tests.support.postgres import PostgresServer, shared_server


async def release(owned: OwnedLog) -> None:
    await owned.log.close()
    await owned.lease.release()


async def is_valid(owned: OwnedLog, expected: bool) -> None:
    await until(lambda: asyncio.sleep(0.01, owned.lease.is_valid() is expected))


async def test_owner_suspends_itself_during_an_outage_and_goes_on_after_it(postgres_schema: str) -> None:
    with FaultProxy(shared_server().address) as proxy:
        dsn = postgres_schema.replace(shared_server().address, proxy.address)
        owned = await PostgresDatabase(dsn, lease_s=under_load(1)).acquire(lambda: None)
        (before,) = await append(owned.log, pending_entry())
        for fault in (proxy.refuse, proxy.stall, proxy.cut):
            fault()
            appending = asyncio.create_task(append(owned.log, pending_entry()))
            if fault != proxy.cut:
                await is_valid(owned, False)
                assert not appending.done()
            proxy.resume()
            proxy.accept()
            (entry,) = await asyncio.wait_for(appending, patient(20))
            await is_valid(owned, True)
            assert entry.position.epoch == before.position.epoch
        assert entry.position.seq == 4
        await release(owned)


async def test_release_without_a_database_is_no_error(postgres_schema: str) -> None:
    with FaultProxy(shared_server().address) as proxy:
        dsn = postgres_schema.replace(shared_server().address, proxy.address)
        owned = await PostgresDatabase(dsn, lease_s=under_load(1)).acquire(lambda: None)
        proxy.refuse()
        await release(owned)
    assert not owned.lease.is_valid()


async def test_idle_owner_notices_the_loss_of_its_commits() -> None:
    """The next ownership begins new epochs, whoever it is."""
    with PostgresServer.create() as server:
        standby = server.base_backup()
        schema = Dsn.parse(server.fresh_schema()).schema
        dsn = server.dsn(schema, address=f"{server.address},{standby.address}")
        owned = await PostgresDatabase(dsn, lease_s=under_load(1)).acquire(lambda: None)
        (kept,) = await append(owned.log, pending_entry())
        written = server.execute("SELECT pg_current_wal_lsn()")
        await asyncio.to_thread(standby.wait_for, f"SELECT WHERE pg_last_wal_replay_lsn() >= '{written}'")
        standby.configure(primary_conninfo="host=127.0.0.1 port=1")
        await asyncio.to_thread(server.wait_for, "SELECT WHERE NOT EXISTS (TABLE pg_stat_replication)")
        (lost,) = await append(owned.log, pending_entry())
        await asyncio.to_thread(server.crash)
        await asyncio.to_thread(standby.promote)
        await asyncio.wait_for(owned.lease.lost(), patient(20))
        assert not owned.lease.is_valid()
        await release(owned)
        owned = await PostgresDatabase(dsn, lease_s=under_load(1)).acquire(lambda: None)
        (entry,) = await append(owned.log, pending_entry())
        assert lost.position.epoch == kept.position.epoch != entry.position.epoch
        assert entry.position.seq == 2
        await release(owned)


async def test_cancelled_acquire_owns_nothing(postgres_schema: str) -> None:
    """Whenever it is cancelled: the next one need not wait for the end of a lease."""
    for pause_s in (0, 0.01, 0.03, 0.06, 0.1):
        acquiring = asyncio.create_task(PostgresDatabase(postgres_schema, lease_s=60).acquire(lambda: None))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await asyncio.shield(acquiring)
        acquiring.cancel()
        with suppress(asyncio.CancelledError):
            await release(await acquiring)
        if await query(postgres_schema, "SELECT WHERE to_regclass('slots') IS NOT NULL"):
            found = await query(postgres_schema, "SELECT FROM slots WHERE incarnation IS NOT NULL")
            assert not found, pause_s
