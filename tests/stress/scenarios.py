"""Faults of routers and databases in random order, in more rounds than `make test` gives them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.e2e.postgres.outages import run_outages
from tests.e2e.postgres.router_faults import RouterFaults
from tests.router.log.postgres.log_writers import LogWriters
from tests.support.patience import under_load
from tests.support.postgres import PostgresServer
from tests.support.postgres_binaries import VERSIONS

LEASE_S = 0.8


class Run(NamedTuple):
    """One run of a scenario. Each fault is added to `history` before it happens."""

    rng: Random
    rounds: int
    history: list[str]


def owners(run: Run) -> None:
    """Stop owners of a log past their lease, wake them, and kill some."""
    with _server(run) as server, _writers(run, server) as writers:
        for number in range(run.rounds):
            writers.stop_and_wake_owner()
            if number % 3 == 2:
                writers.kill_owner()
        _check(writers)


def crashes(run: Run) -> None:
    """Crash the server as often as rounds, and cut connections, until as many commits were unknown."""
    with _server(run) as server, _writers(run, server) as writers:
        crashed = 0
        while crashed < run.rounds or writers.unknown_commits < run.rounds:
            if run.rng.random() < 2 / 3:
                writers.crash_server()
                crashed += 1
            else:
                run.rng.choice([writers.cut_connections, writers.lose_answers])()
        _check(writers)


def failovers(run: Run) -> None:
    """Crash the server and promote its synchronous standby."""
    with _server(run) as server:
        server.base_backup(synchronous=True)
        with _writers(run, server) as writers:
            for _ in range(run.rounds):
                writers.fail_over()
            _check(writers)


def routers(run: Run) -> None:
    """Everything that can happen to two routers, their edges and their database, while clients send."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(RouterFaults(run.rng, run.history).run(Path(folder), run.rounds))


def outages(run: Run) -> None:
    """Lose the database for longer than the lease; the edge keeps its link to the only router."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run_outages(Path(folder), run.rng, run.history, run.rounds))


class Scenario(NamedTuple):
    """A scenario with its usual number of rounds."""

    run: Callable[[Run], None]
    rounds: int


SCENARIOS = {
    "owners": Scenario(owners, 20),
    "crashes": Scenario(crashes, 50),
    "failovers": Scenario(failovers, 10),
    "outages": Scenario(outages, 4),
    "routers": Scenario(routers, 40),
}


def _server(run: Run) -> PostgresServer:
    version = run.rng.choice(list(VERSIONS))
    run.history.append(f"PostgreSQL {version}")
    return PostgresServer.create(version)


def _writers(run: Run, server: PostgresServer) -> LogWriters:
    writers = LogWriters(server, run.rng, under_load(LEASE_S))
    writers.history = run.history
    return writers


def _check(writers: LogWriters) -> None:
    violations = writers.violations()
    assert not violations, "\n".join(violations[:20])
