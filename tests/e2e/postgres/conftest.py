"""Two routers on one database of their own, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.postgres.standby_fleet import StandbyFleet, standby_fleet
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import under_load
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="package")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.create() as server:
        yield server


@pytest.fixture(scope="package")
def database(server: PostgresServer) -> Iterator[FaultProxy]:
    """The routers' way to the server."""
    with FaultProxy(server.address) as proxy:
        yield proxy


@pytest.fixture(scope="package")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, server: PostgresServer, database: FaultProxy
) -> Iterator[StandbyFleet]:
    server.create_schema("installation")
    dsn = server.dsn("installation", address=database.address)
    env = {"TRUNKLINE_REPLY_LEASE_S": str(under_load(2)), "TRUNKLINE_CHECKPOINT_INTERVAL_S": "0.1"}
    with standby_fleet(tmp_path_factory.mktemp("standby"), dsn, edges=2, **env) as started:
        yield started
