"""One router for all tests of the command line; each test uses its own tenants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import structlog

from tests.router.cli.command_line import DATA_KEY, OPERATOR, CommandLine
from tests.support.processes import Process, router_process

_NUMBERS = count()


@pytest.fixture(autouse=True)
def unconfigured_logs() -> Iterator[None]:
    """Undo how a command of this process writes its log: later tests capture lines of all levels."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    data = tmp_path_factory.mktemp("router")
    with router_process(data, TRUNKLINE_OPERATOR_KEY=OPERATOR, TRUNKLINE_DATA_KEY=DATA_KEY) as process:
        yield process


@pytest.fixture
def tenant(router: Process) -> CommandLine:
    return CommandLine(router.address)


@pytest.fixture
def acme(tenant: CommandLine) -> str:
    """Create a tenant and return its name."""
    name = f"acme{next(_NUMBERS)}"
    tenant("create", name)
    return name
