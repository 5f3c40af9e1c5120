"""Failovers to standbys: what was confirmed is there, or its loss is noticed."""

from __future__ import annotations

import asyncio

import pytest
from trunkline_router.log.interface import LogFenced
from trunkline_router.log.postgres.dsn import Dsn

from tests.router.log.postgres.owned import fenced_writer, note, notes, query
from tests.support.patience import patient
from tests.support.postgres import PostgresServer


async def test_loss_of_confirmed_commits_is_noticed_after_a_failover() -> None:
    """An asynchronous standby lacks the last commits of its primary."""
    with PostgresServer.create() as server:
        standby = server.base_backup()
        schema = Dsn.parse(server.fresh_schema()).schema
        both = f"{server.address},{standby.address}"
        async with fenced_writer(server.dsn(schema, address=both)) as writer:
            await note(writer, "replicated")
            replayed = server.execute("SELECT pg_current_wal_lsn()")
            await asyncio.to_thread(
                standby.wait_for, f"SELECT WHERE pg_last_wal_replay_lsn() >= '{replayed}'"
            )
            # Neither replayed nor, as the primary crashes with the receiver stopped, received.
            standby.configure(primary_conninfo="host=127.0.0.1 port=1")
            await asyncio.to_thread(server.wait_for, "SELECT WHERE NOT EXISTS (TABLE pg_stat_replication)")
            assert await note(writer, "lost") == "lost"
            await asyncio.to_thread(server.crash)
            await asyncio.to_thread(standby.promote)
            with pytest.raises(LogFenced, match="lacks commits"):
                await note(writer, "next")
            with pytest.raises(LogFenced, match="another router"):
                await note(writer, "later")
        dsn = standby.dsn(schema)
        assert await notes(dsn) == ["replicated"]
        assert [
            tuple(row) for row in await query(dsn, "SELECT is_older_copy, alive FROM installation, routers")
        ] == [(True, False)]


@pytest.mark.parametrize("fault", ["crash", "freeze"])
async def test_writes_go_on_after_a_failover_to_a_synchronous_standby(fault: str) -> None:
    """The former primary has crashed, or is there and answers nothing."""
    with PostgresServer.create() as server:
        standby = server.base_backup(synchronous=True)
        schema = Dsn.parse(server.fresh_schema()).schema
        both = f"{server.address},{standby.address}"
        async with fenced_writer(server.dsn(schema, address=both)) as writer:
            assert await note(writer, "before") == "before"
            await asyncio.to_thread(getattr(server, fault))
            writing = asyncio.create_task(note(writer, "during"))
            await asyncio.to_thread(standby.promote)
            assert await asyncio.wait_for(writing, patient(10)) == "during"
        assert await notes(standby.dsn(schema)) == ["before", "during"]


async def test_commit_whose_wait_for_the_standby_is_ended_is_not_confirmed() -> None:
    """The server has committed it then, but a failover would lose it."""
    with PostgresServer.create() as server:
        standby = server.base_backup(synchronous=True)
        dsn = server.fresh_schema()
        async with fenced_writer(dsn) as writer:
            assert await note(writer, "before") == "before"
            await asyncio.to_thread(standby.freeze)
            writing = asyncio.create_task(note(writer, "during"))
            waits = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            for _ in range(3):
                await asyncio.to_thread(server.wait_for, waits)
                await asyncio.to_thread(server.execute, cancel)
            await asyncio.to_thread(server.wait_for, waits)
            assert not writing.done()
            await asyncio.to_thread(standby.thaw)
            assert await asyncio.wait_for(writing, patient(20)) == "during"
        assert await notes(dsn) == ["before", "during"]
