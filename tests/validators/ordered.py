"""ordered: each connection sees a topic's messages in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Acked, Advanced, History, Received


def ordered(history: History) -> Iterator[str]:
    """Messages that came after a message, or an ack, that stands behind them.

    An ack may come late, but not early: a client that has one goes on from there after a reconnect.
    """
    highest: dict[tuple[str, str, str], int] = {}
    for event in history.of(Acked, Received, Advanced):
        if event.place is None:
            continue
        line = (event.life, event.topic, event.place.epoch)
        if not isinstance(event, Acked) and event.place.seq <= highest.get(line, 0):
            yield f"{event} came after number {highest[line]}"
        highest[line] = max(highest.get(line, 0), event.place.seq)
