"""Fixtures for tests of whole fleets; each module defines its own `fleet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.fleet import running_fleets
from tests.e2e.operator_client import OperatorClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.fleet import Fleet
    from tests.support.processes import Process


@pytest.fixture(autouse=True)
def _no_tracebacks() -> Iterator[None]:
    """Check after each test that no process has written a traceback."""
    yield
    for each in running_fleets:
        each.assert_no_tracebacks()


@pytest.fixture
def edge(fleet: Fleet) -> Process:
    """First edge of the fleet."""
    return fleet.edges[0]


@pytest.fixture
def operator(fleet: Fleet) -> Iterator[OperatorClient]:
    """Client with the operator's key."""
    with OperatorClient(fleet.router.address, fleet.operator_key, fleet.edges) as calling:
        yield calling
