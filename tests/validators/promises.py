"""Checks a history against every promise that needs no bounds of its own."""

from __future__ import annotations

from validators.durable import durable
from validators.explicit import explicit
from validators.gapless import gapless
from validators.history import History
from validators.isolated import isolated
from validators.once import once
from validators.ordered import ordered
from validators.terminal import terminal

PROMISES = (durable, ordered, gapless, once, terminal, isolated, explicit)
SHOWN = 5


def assert_promises(history: History) -> None:
    """Fail with the first violations of each promise."""
    found = {promise.__name__: list(promise(history)) for promise in PROMISES}
    lines = [
        f"{name}: {len(violations)} violations\n  " + "\n  ".join(violations[:SHOWN])
        for name, violations in found.items()
        if violations
    ]
    assert not lines, "\n".join(lines)
