"""explicit: each error and close is an entry of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.catalogue import ENTRIES

from tests.validators.history import Closed, History, Rejected


def explicit(history: History) -> Iterator[str]:
    """Report unknown error codes, and connections that broke without a fault injected by the test."""
    for refused in history.of(Rejected):
        if refused.code not in ENTRIES:
            yield f"{refused} is not in the catalogue"
    for closed in history.of(Closed):
        if closed.ours or (closed.code, closed.reason) == (1000, ""):
            continue
        entry = ENTRIES.get(closed.reason)
        if entry is None or entry.close_code != closed.code:
            yield f"{closed} is not in the catalogue"
