"""durable: an ack is sent only after the message is on disk, and nobody is shown what could vanish."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Acked, History, Received, Sent


def durable(history: History) -> Iterator[str]:
    """What was acknowledged or shown and is not in the log as it was said."""
    logged = {(entry.topic, entry.place): entry for entry in history.log}
    said = {(event.topic, event.id): event.content for event in history.of(Sent)}
    for event in history.of(Acked, Received):
        if event.place is None or event.place.epoch in history.erased:
            continue
        entry = logged.get((event.topic, event.place))
        if entry is None:
            yield f"{event} is not in the log"
            continue
        if entry.message_id != event.message_id:
            yield f"{event} is another message in the log: {entry}"
        content = event.content if isinstance(event, Received) else said.get((event.topic, event.id))
        if isinstance(event, Received) and event.state == "open":
            # What is shown of it may be ahead of the disk, and it may have been continued otherwise.
            continue
        if content != entry.content:
            yield f"{event} says {content!r}, and the log {entry.content!r}"
