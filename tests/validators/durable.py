"""durable: acked and delivered messages are on disk."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Acked, History, Received, Sent


def durable(history: History) -> Iterator[str]:
    """Report acked or received messages that are missing from the log or differ there."""
    logged = {(entry.topic, entry.position): entry for entry in history.log}
    sent = {(event.topic, event.id): event.content for event in history.of(Sent)}
    for event in history.of(Acked, Received):
        if event.position is None or event.position.epoch in history.erased:
            continue
        entry = logged.get((event.topic, event.position))
        if entry is None:
            yield f"{event} is not in the log"
            continue
        if entry.message_id != event.message_id:
            yield f"{event} is another message in the log: {entry}"
        content = event.content if isinstance(event, Received) else sent.get((event.topic, event.id))
        if isinstance(event, Received) and event.state == "open":
            # Streamed text may be ahead of the disk, and a takeover may have continued it differently.
            continue
        if content != entry.content:
            yield f"{event} contains {content!r}, the log {entry.content!r}"
