"""terminal: every open message ends in exactly one state, the same for all, even if its worker is killed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Ended, History


def terminal(history: History) -> Iterator[str]:
    """Messages that are open for ever, that ended twice, or otherwise for one than for another."""
    logged = {entry.message_id: entry for entry in history.log}
    yield from (f"{entry} is still open" for entry in history.log if entry.state == "open")
    told: set[tuple[str, str]] = set()
    for event in history.of(Ended):
        if (event.life, event.message_id) in told:
            yield f"{event} came twice"
        told.add((event.life, event.message_id))
        entry = logged.get(event.message_id)
        if entry is None:
            if event.place.epoch not in history.erased:
                yield f"{event} is not in the log"
        elif (event.state, event.content) != (entry.state, entry.content) and entry.state != "recalled":
            yield f"{event} is otherwise in the log: {entry}"
