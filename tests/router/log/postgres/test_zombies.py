"""Processes that own a log in turn, or lose its database, never contradict what they acked."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.router.log.postgres.log_writers import LogWriters
from tests.support.patience import under_load
from tests.support.postgres import PostgresServer
from tests.support.processes import linux

pytestmark = [linux, pytest.mark.long]

#: `make stress` has more rounds.
ROUNDS = 3
LEASE_S = 0.8


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer.create() as server:
        yield server


def test_owners_that_are_stopped_woken_and_killed_lose_and_repeat_nothing(server: PostgresServer) -> None:
    with LogWriters(server, random.Random(), under_load(LEASE_S)) as writers:
        for _ in range(ROUNDS):
            writers.stop_and_wake_owner()
        writers.kill_owner()
        assert writers.violations() == []
    assert len(writers.ledger.fenced) >= ROUNDS


def test_the_check_notices_owners_without_fences(server: PostgresServer) -> None:
    with LogWriters(server, random.Random(), under_load(LEASE_S), unfenced=True) as writers:
        writers.stop_and_wake_owner()
        assert "owners interleave" in "\n".join(writers.violations())


def test_commits_of_unknown_outcome_are_acked_if_and_only_if_they_happened(server: PostgresServer) -> None:
    with LogWriters(server, random.Random(), under_load(LEASE_S)) as writers:
        for _ in range(ROUNDS):
            writers.crash_server()
            writers.cut_connections()
            writers.lose_answers()
        assert writers.violations() == []
