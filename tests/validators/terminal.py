"""terminal: every open message ends in one state, equal for all clients, even if its worker is killed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Ended, History


def terminal(history: History) -> Iterator[str]:
    """Report messages that never end, end twice, or end differently for different clients."""
    logged = {entry.message_id: entry for entry in history.log}
    yield from (f"{entry} is still open" for entry in history.log if entry.state == "open")
    ended: set[tuple[str, str]] = set()
    for event in history.of(Ended):
        if (event.session, event.message_id) in ended:
            yield f"{event} was received twice"
        ended.add((event.session, event.message_id))
        entry = logged.get(event.message_id)
        if entry is None:
            if event.position.epoch not in history.erased:
                yield f"{event} is not in the log"
        elif (event.state, event.content) != (entry.state, entry.content) and entry.state != "recalled":
            yield f"{event} differs from the log: {entry}"
