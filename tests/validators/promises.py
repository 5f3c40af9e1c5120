"""Checks of a history against every promise that has no parameters."""

from __future__ import annotations

from tests.validators.durable import durable
from tests.validators.explicit import explicit
from tests.validators.gapless import gapless
from tests.validators.history import History
from tests.validators.isolated import isolated
from tests.validators.once import once
from tests.validators.ordered import ordered
from tests.validators.terminal import terminal

PROMISES = (durable, ordered, gapless, once, terminal, isolated, explicit)
MAX_REPORTED = 5


def assert_promises(history: History) -> None:
    """Fail with the first violations of each promise."""
    found = {promise.__name__: list(promise(history)) for promise in PROMISES}
    lines = [
        f"{name}: {len(violations)} violations\n  " + "\n  ".join(violations[:MAX_REPORTED])
        for name, violations in found.items()
        if violations
    ]
    assert not lines, "\n".join(lines)
