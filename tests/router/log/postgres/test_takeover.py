"""Owners of a log in PostgreSQL: their leases, and who takes a log over, and when."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from trunkline_router.core.values.log_records import Transaction
from trunkline_router.log.data_keys import parse_data_keys
from trunkline_router.log.engines import open_database
from trunkline_router.log.interface import LogFenced
from trunkline_router.log.ownership import OwnedLog
from trunkline_router.log.postgres import takeover
from trunkline_router.log.postgres.database import PostgresDatabase
from trunkline_router.log.postgres.lease import clock_s
from trunkline_router.settings import RouterSettings

from tests.router.log.engines import append, pending_entry
from tests.router.log.postgres.owned import query
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient
from tests.support.postgres import PostgresServer, shared_server

PATIENCE_S = patient(10)
#: Longer than in a router would be too slow for tests, shorter is not met on a busy machine.
LEASE_S = 2.0
#: Of which a part, too, is long on a busy machine.
LONG_LEASE_S = patient(4)
GONE = "the owner of the log is gone; taking it over"
WAITS = "the database does not complete a commit of the owner; waiting"


class Fleet:
    """Routers' ownerships of one log, which are closed at the end of a test."""

    def __init__(self, dsn: str, at_end: AsyncExitStack) -> None:
        self.dsn = dsn
        self._at_end = at_end
        self.waits = 0

    async def acquire(self, dsn: str = "", lease_s: float = LEASE_S) -> OwnedLog:
        """Own the log with a router of its own."""
        database = PostgresDatabase(dsn or self.dsn, lease_s=lease_s)
        owned = await database.acquire(self._must_wait)
        self._at_end.push_async_callback(end, owned)
        return owned

    def waiting(self, lease_s: float = LEASE_S) -> asyncio.Task[OwnedLog]:
        """Begin to wait for the log."""
        return asyncio.create_task(self.acquire(lease_s=lease_s))

    async def until_waiting(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.waits:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def _must_wait(self) -> None:
        self.waits += 1


async def end(owned: OwnedLog) -> None:
    await owned.log.close()
    await owned.lease.release()


def stop_renewing(owned: OwnedLog) -> None:
    """Let a router no longer renew its lease, as if it were frozen; its sessions stay."""
    lease: Any = owned.lease
    lease._renewing.cancel()


async def vanish(owned: OwnedLog) -> None:
    """End a router's sessions as its death does."""
    stop_renewing(owned)
    log: Any = owned.log
    connector = log._writer._connector
    end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
    assert await query(connector.dsn.text, end_sessions, connector.application_name)


@pytest.fixture
async def fleet(postgres_schema: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as at_end:
        yield Fleet(postgres_schema, at_end)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(shared_server().address) as one:
        yield one


async def owned_in_time(waiting: asyncio.Task[OwnedLog]) -> OwnedLog:
    return await asyncio.wait_for(waiting, PATIENCE_S)


async def until_valid(owned: OwnedLog) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not owned.lease.is_valid():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_another_router_waits_until_the_log_is_released(fleet: Fleet) -> None:
    first = await fleet.acquire()
    await append(first.log, pending_entry(text="one"))
    waiting = fleet.waiting()
    await fleet.until_waiting()
    with capture_logs() as lines:
        await end(first)
        second = await owned_in_time(waiting)
    # Not because the owner is gone, for which it would wait longer.
    assert GONE not in {line["event"] for line in lines}
    (entry,) = await append(second.log, pending_entry(text="two"))
    assert entry.position.seq == 2
    assert not first.lease.is_valid()
    await until_valid(second)


async def test_a_lease_is_renewed_for_as_long_as_its_router_lives(fleet: Fleet) -> None:
    owned = await fleet.acquire(lease_s=LONG_LEASE_S)
    until = clock_s() + 1.5 * LONG_LEASE_S / 4
    while clock_s() < until:
        await asyncio.sleep(0.02)
        assert owned.lease.is_valid()


async def test_a_router_without_sessions_loses_the_log_before_its_lease_ends(fleet: Fleet) -> None:
    first = await fleet.acquire(lease_s=LONG_LEASE_S)
    waiting = fleet.waiting(LONG_LEASE_S)
    await fleet.until_waiting()
    with capture_logs() as lines:
        await vanish(first)
        second = await owned_in_time(waiting)
    (line,) = (line for line in lines if line["event"] == GONE)
    assert not line["has_sessions"]
    assert line["lease_ended_s_ago"] < 0
    assert not first.lease.is_valid()
    await until_valid(second)


async def test_a_router_with_sessions_keeps_the_log_until_its_lease_ends(fleet: Fleet) -> None:
    first = await fleet.acquire()
    waiting = fleet.waiting()
    await fleet.until_waiting()
    await asyncio.sleep(0)
    stop_renewing(first)
    stopped_at = clock_s()
    while first.lease.is_valid():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    # Unsure long before anybody else may own the log.
    assert not waiting.done()
    await owned_in_time(waiting)
    assert clock_s() - stopped_at > LEASE_S - LEASE_S / 10


async def test_a_router_that_is_frozen_in_a_commit_is_ended(fleet: Fleet) -> None:
    first = await fleet.acquire()
    log: Any = first.log
    entered = asyncio.Event()

    async def freeze(connection: Any) -> None:
        entered.set()
        stop_renewing(first)
        await asyncio.sleep(PATIENCE_S)

    freezing = asyncio.create_task(log._writer.transaction(freeze))
    await entered.wait()
    second = await owned_in_time(fleet.waiting())
    await append(second.log, pending_entry(text="one"))
    freezing.cancel()
    for task in log._writer._operations:
        task.cancel()


async def test_a_router_whose_log_was_taken_over_commits_nothing_and_knows(fleet: Fleet) -> None:
    first = await fleet.acquire()
    await append(first.log, pending_entry(text="one"))
    stop_renewing(first)
    second = await owned_in_time(fleet.waiting())
    was_valid: list[bool] = []
    lost = asyncio.create_task(first.lease.lost())
    # As if its clock stood still.
    lease: Any = first.lease
    lease._sure_until = clock_s() + 60
    try:
        await first.log.append(Transaction([pending_entry(text="two")]))
    except LogFenced:
        was_valid.append(first.lease.is_valid())
    assert was_valid == [False]
    assert "owner" in await lost
    (entry,) = await append(second.log, pending_entry(text="three"))
    assert entry.position.seq == 2


async def test_a_renewal_notices_that_the_log_was_taken_over(fleet: Fleet) -> None:
    first = await fleet.acquire()
    await query(fleet.dsn, "UPDATE routers SET alive = false")
    assert "renewed" in await asyncio.wait_for(first.lease.lost(), PATIENCE_S)
    assert not first.lease.is_valid()
    # It never owns the log again; another incarnation may.
    await until_valid(await owned_in_time(fleet.waiting()))
    assert not first.lease.is_valid()


async def test_one_of_many_that_wait_takes_the_log(fleet: Fleet) -> None:
    first = await fleet.acquire()
    waiting = [fleet.waiting() for _ in range(4)]
    await fleet.until_waiting()
    await end(first)
    done, others = await asyncio.wait(waiting, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(2 * takeover.POLL_S)
    assert len([each for each in waiting if each.done()]) == len(done) == 1
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_router_that_cannot_renew_is_unsure_and_goes_on_when_it_can(
    fleet: Fleet, proxy: FaultProxy
) -> None:
    owned = await fleet.acquire(fleet.dsn.replace(shared_server().address, proxy.address))
    async with asyncio.timeout(PATIENCE_S):
        proxy.refuse()
        while owned.lease.is_valid():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        proxy.accept()
        while not owned.lease.is_valid():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await append(owned.log, pending_entry())


@asynccontextmanager
async def sampled(leases: list[Any]) -> AsyncIterator[list[int]]:
    """Count the valid leases, over and over."""
    found: list[int] = []

    async def sample() -> None:
        while True:
            found.append(sum(lease.is_valid() for lease in leases))
            await asyncio.sleep(0.003)

    sampling = asyncio.create_task(sample())
    yield found
    sampling.cancel()


@pytest.mark.parametrize("fault", ["stall", "refuse", "vanish", "freeze"])
async def test_two_routers_are_never_sure_at_once(fleet: Fleet, proxy: FaultProxy, fault: str) -> None:
    leases: list[Any] = []
    async with sampled(leases) as found:
        first = await fleet.acquire(fleet.dsn.replace(shared_server().address, proxy.address))
        leases.append(first.lease)
        waiting = fleet.waiting()
        await fleet.until_waiting()
        if fault == "stall":
            proxy.stall()
        elif fault == "refuse":
            proxy.refuse()
        elif fault == "vanish":
            await vanish(first)
        else:
            stop_renewing(first)
        second = await owned_in_time(waiting)
        leases.append(second.lease)
        proxy.resume()
        proxy.accept()
        await asyncio.sleep(LEASE_S / 4)
    assert max(found) == 1


async def test_nobody_ends_a_commit_that_waits_for_a_synchronous_standby() -> None:
    """A successor's commits would wait as well."""
    with PostgresServer.create() as server:
        standby = await asyncio.to_thread(server.base_backup, synchronous=True)
        async with AsyncExitStack() as at_end:
            fleet = Fleet(server.fresh_schema(), at_end)
            first = await fleet.acquire()
            await append(first.log, pending_entry(text="one"))
            await asyncio.to_thread(standby.stop)
            appending = asyncio.create_task(append(first.log, pending_entry(text="two")))
            with capture_logs() as lines:
                waiting = fleet.waiting()
                async with asyncio.timeout(PATIENCE_S):
                    while WAITS not in {line["event"] for line in lines}:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            assert [line["event"] for line in lines].count(GONE) == 1
            assert not appending.done()
            assert not any("administrator command" in line for line in server.log)
            await asyncio.to_thread(standby.start)
            (entry,) = await asyncio.wait_for(appending, PATIENCE_S)
            assert entry.position.seq == 2
            if not waiting.done():
                await end(first)
            await owned_in_time(waiting)


async def test_a_router_that_waits_at_a_server_that_hangs_goes_to_the_next(
    fleet: Fleet, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "LOOK_TIMEOUT_S", 0.2)
    first = await fleet.acquire()
    server = shared_server().address
    waiting = asyncio.create_task(fleet.acquire(fleet.dsn.replace(server, f"{proxy.address},{server}")))
    await fleet.until_waiting()
    proxy.stall()
    await end(first)
    await owned_in_time(waiting)


async def test_data_keys_may_change_while_a_router_waits(postgres_schema: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    old, new = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))
    file.write_text(old)
    settings = RouterSettings(data_dir=tmp_path, database_url=SecretStr(postgres_schema), data_key_file=file)
    first = await open_database(settings).acquire(lambda: None)
    is_waiting = asyncio.Event()
    waiting = asyncio.create_task(open_database(settings).acquire(is_waiting.set))
    await asyncio.wait_for(is_waiting.wait(), PATIENCE_S)
    file.write_text(f"{new}\n{old}")
    await first.log.use_data_keys(parse_data_keys([new, old], "the test"))
    file.write_text(new)
    await end(first)
    await end(await owned_in_time(waiting))


def owner_at(
    overdue_s: float, until: object = 1, *, is_connected: bool = True, lease_s: float = 5
) -> takeover.Owner:
    return takeover.Owner(1, True, "address", "boot", until, lease_s, overdue_s, is_connected)


def test_the_clock_of_the_database_may_be_set_forward_while_the_owner_lives() -> None:
    now = 0.0
    standby = takeover.Standby("boot", "address", 5, lambda: now)
    for renewal in range(100):
        # Each poll sees a new renewal, which the step of the clock has just overtaken.
        now += takeover.POLL_S
        assert not standby._has_lost(owner_at(3_600, renewal))
    # Sure until then.
    now += 5 / 4
    assert not standby._has_lost(owner_at(3_600, renewal))
    now += 1
    assert standby._has_lost(owner_at(3_600, renewal))


def test_the_clock_of_the_database_may_be_set_back_after_the_owner_froze() -> None:
    now = 0.0
    standby = takeover.Standby("boot", "address", 5, lambda: now)
    assert not standby._has_lost(owner_at(-3_605))
    now = 4.9
    assert not standby._has_lost(owner_at(-3_600))
    now = 5.5
    assert standby._has_lost(owner_at(-3_599))


def test_a_router_that_ended_long_ago_is_not_waited_for() -> None:
    standby = takeover.Standby("boot", "address", 5, lambda: 0.0)
    assert standby._has_lost(owner_at(3_600, is_connected=False))


def test_an_owner_is_sure_for_as_long_as_its_own_lease_lasts() -> None:
    now = 0.0
    standby = takeover.Standby("boot", "address", 5, lambda: now)
    for is_connected in (True, False):
        assert not standby._has_lost(owner_at(-59, is_connected, is_connected=is_connected, lease_s=60))
        now += 60 / 4
        assert not standby._has_lost(owner_at(-44, is_connected, is_connected=is_connected, lease_s=60))
    now += 1
    assert standby._has_lost(owner_at(-43, False, is_connected=False, lease_s=60))


async def test_a_lease_is_stored_with_its_length(fleet: Fleet) -> None:
    await fleet.acquire(lease_s=60)
    ((seconds,),) = await query(fleet.dsn, "SELECT seconds FROM leases")
    assert seconds == 60
