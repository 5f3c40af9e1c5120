"""gapless: after a reconnect a client gets all that it missed, then live messages, no gap, no duplicate;
or it is told `recovered: false` and nothing partial.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.validators.history import Acked, Advanced, History, LogPosition, Received, Sent, TopicStarted


def gapless(history: History) -> Iterator[str]:
    """Holes and duplicates in what each connection was shown of each topic."""
    heads: dict[tuple[str, str], int] = {}
    authors = {(entry.topic, entry.place): entry.client_id for entry in history.log}
    for entry in history.log:
        line = (entry.topic, entry.place.epoch)
        heads[line] = max(heads.get(line, 0), entry.place.seq)
    own = {(event.client, event.topic, event.id) for event in history.of(Sent)}
    shown: dict[tuple[str, str], list[Received | Acked | Advanced]] = defaultdict(list)
    for event in history.of(Received, Acked, Advanced):
        shown[event.life, event.topic].append(event)
    yield from _duplicates(history, shown)
    for start in history.of(TopicStarted):
        if start.recovered and start.wanted is not None and start.place != start.wanted:
            yield f"{start} goes on from elsewhere"
        is_open = start.life in history.open_lives
        for place in _holes(start, shown[start.life, start.topic], heads, is_open):
            is_own = (start.client, start.topic, authors.get((start.topic, place), "")) in own
            # The ack of a client's own message may be lost with the connection.
            if is_open or not is_own:
                yield f"{start.client} was never shown {place} of {start.topic} in {start.life}"


def _holes(
    start: TopicStarted,
    shown: list[Received | Acked | Advanced],
    heads: dict[tuple[str, str], int],
    is_open: bool,
) -> Iterator[LogPosition]:
    seen: dict[str, set[int]] = defaultdict(set)
    for event in shown:
        if event.place is not None:
            seen[event.place.epoch].add(event.place.seq)
    if is_open:
        for topic, epoch in heads:
            if topic == start.topic:
                seen[epoch].add(0)
    for epoch, numbers in seen.items():
        first = start.place.seq + 1 if epoch == start.place.epoch else 1
        last = max(numbers)
        if is_open:
            last = max(last, heads.get((start.topic, epoch), 0))
        yield from (LogPosition(epoch, seq) for seq in range(first, last + 1) if seq not in numbers)


def _duplicates(
    history: History, shown: dict[tuple[str, str], list[Received | Acked | Advanced]]
) -> Iterator[str]:
    lives: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for said in history.of(Sent):
        lives[said.client, said.topic, said.id].add(said.life)
    starts = {(start.life, start.topic): start.place for start in history.of(TopicStarted)}
    for line, events in shown.items():
        start = starts.get(line, LogPosition("", 0))
        heard: set[LogPosition] = set()
        for event in events:
            if isinstance(event, Acked) or event.place is None:
                continue
            if event.place in heard:
                yield f"{event} came twice"
            if event.place.epoch == start.epoch and event.place.seq <= start.seq:
                yield f"{event} came, but the connection began after {start}"
            heard.add(event.place)
        for event in events:
            if not isinstance(event, Acked) or event.place not in heard:
                continue
            # What was said on an earlier connection may be met again, and acked when it is said again.
            if lives[event.client, event.topic, event.id] == {event.life}:
                yield f"{event} was shown as a message too"
