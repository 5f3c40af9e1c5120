"""gapless: a resuming client receives everything it missed, then live messages, without gap or duplicate;
or `recovered: false` and nothing partial.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.validators.history import Acked, Advanced, History, LogPosition, Received, Sent, TopicStarted


def gapless(history: History) -> Iterator[str]:
    """Report gaps and duplicates in what each connection received of each topic."""
    heads: dict[tuple[str, str], int] = {}
    authors = {(entry.topic, entry.position): entry.client_id for entry in history.log}
    for entry in history.log:
        key = (entry.topic, entry.position.epoch)
        heads[key] = max(heads.get(key, 0), entry.position.seq)
    own = {(event.client, event.topic, event.id) for event in history.of(Sent)}
    received: dict[tuple[str, str], list[Received | Acked | Advanced]] = defaultdict(list)
    for event in history.of(Received, Acked, Advanced):
        received[event.session, event.topic].append(event)
    yield from _duplicates(history, received)
    for start in history.of(TopicStarted):
        if start.recovered and start.wanted is not None and start.position != start.wanted:
            yield f"{start} resumes at a different position"
        is_open = start.session in history.open_sessions
        for position in _gaps(start, received[start.session, start.topic], heads, is_open):
            is_own = (start.client, start.topic, authors.get((start.topic, position), "")) in own
            # The ack of a client's own message may be lost with the connection.
            if is_open or not is_own:
                yield f"{start.client} never received {position} of {start.topic} in {start.session}"


def _gaps(
    start: TopicStarted,
    received: list[Received | Acked | Advanced],
    heads: dict[tuple[str, str], int],
    is_open: bool,
) -> Iterator[LogPosition]:
    seen: dict[str, set[int]] = defaultdict(set)
    for event in received:
        if event.position is not None:
            seen[event.position.epoch].add(event.position.seq)
    if is_open:
        for topic, epoch in heads:
            if topic == start.topic:
                seen[epoch].add(0)
    for epoch, numbers in seen.items():
        first = start.position.seq + 1 if epoch == start.position.epoch else 1
        last = max(numbers)
        if is_open:
            last = max(last, heads.get((start.topic, epoch), 0))
        yield from (LogPosition(epoch, seq) for seq in range(first, last + 1) if seq not in numbers)


def _duplicates(
    history: History, received: dict[tuple[str, str], list[Received | Acked | Advanced]]
) -> Iterator[str]:
    sessions: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for sent in history.of(Sent):
        sessions[sent.client, sent.topic, sent.id].add(sent.session)
    starts = {(start.session, start.topic): start.position for start in history.of(TopicStarted)}
    for key, events in received.items():
        start = starts.get(key, LogPosition("", 0))
        seen: set[LogPosition] = set()
        for event in events:
            if isinstance(event, Acked) or event.position is None:
                continue
            if event.position in seen:
                yield f"{event} was received twice"
            if event.position.epoch == start.epoch and event.position.seq <= start.seq:
                yield f"{event} was received, but the connection started after {start}"
            seen.add(event.position)
        for event in events:
            if not isinstance(event, Acked) or event.position not in seen:
                continue
            # A message sent on an earlier connection may be received, and acked when it is resent.
            if sessions[event.client, event.topic, event.id] == {event.session}:
                yield f"{event} was also received as a message"
