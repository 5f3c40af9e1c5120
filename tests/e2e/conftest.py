"""What tests of whole fleets have in common; the `fleet` itself is each module's own."""

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
    """After each test: no process of any fleet has written a traceback."""
    yield
    for each in running_fleets:
        each.assert_quiet()


@pytest.fixture
def edge(fleet: Fleet) -> Process:
    """The first edge."""
    return fleet.edges[0]


@pytest.fixture
def operator(fleet: Fleet) -> Iterator[OperatorClient]:
    """Calls the router with the operator's key."""
    with OperatorClient(fleet.router.address, fleet.operator_key) as calling:
        yield calling
