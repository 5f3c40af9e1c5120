"""Bounds on the waits of tests, and the one setting that stretches them all.

A test waits for a condition; the bound only ends a wait whose condition never comes. A generous bound
costs a passing test nothing, so it allows for a slow machine:

    async with asyncio.timeout(patient(10)): ...
    assert took_s < under_load(1)

`TRUNKLINE_TEST_PATIENCE` is the factor by which all bounds are multiplied, such as 10. Without it the
factor follows the machine's load.
"""

from __future__ import annotations

import os

SETTING = "TRUNKLINE_TEST_PATIENCE"
#: The default factor for waits, unless the load asks for more.
WAIT_FACTOR = 3.0


def patient(seconds: float) -> float:
    """Stretch the bound on a wait: by the setting, or by the load per core and at least `WAIT_FACTOR`."""
    return seconds * (_configured() or max(WAIT_FACTOR, load_per_core()))


def under_load(seconds: float) -> float:
    """Stretch a time that a test measures or sets: by the setting, or by the load per core.

    For what the product promises to do in time, and for lifetimes and timeouts that a test gives it. On a
    quiet machine it is `seconds`. Call it as late as possible: the load average lags behind the load.
    """
    return seconds * (_configured() or max(1.0, load_per_core()))


def load_per_core() -> float:
    """Processes that want a core, per core, averaged over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _configured() -> float:
    """The factor that the setting names; 0 without one."""
    return float(os.environ.get(SETTING) or 0)
