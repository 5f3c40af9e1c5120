"""ordered: each connection receives a topic's messages in the order of their seqs."""

from __future__ import annotations

from collections.abc import Iterator

from tests.validators.history import Acked, Advanced, History, Received


def ordered(history: History) -> Iterator[str]:
    """Report messages received after a message or an ack with a higher seq.

    An ack may arrive late but not early: after a reconnect a client resumes from its highest ack.
    """
    highest: dict[tuple[str, str, str], int] = {}
    for event in history.of(Acked, Received, Advanced):
        if event.position is None:
            continue
        key = (event.session, event.topic, event.position.epoch)
        if not isinstance(event, Acked) and event.position.seq <= highest.get(key, 0):
            yield f"{event} was received after seq {highest[key]}"
        highest[key] = max(highest.get(key, 0), event.position.seq)
