"""once: retries with the same id create one message and get the same response; agents reply once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.validators.history import Acked, History


def once(history: History) -> Iterator[str]:
    """Report duplicate messages, differing responses, and duplicate replies."""
    keys = Counter((e.topic, e.role, e.author, e.client_id) for e in history.log if e.client_id)
    yield from (f"{key} is in the log {count} times" for key, count in keys.items() if count > 1)
    answers: dict[tuple[str, str, str], Acked] = {}
    for event in history.of(Acked):
        first = answers.setdefault((event.client, event.topic, event.id), event)
        if (first.message_id, first.position) != (event.message_id, event.position):
            yield f"{event} was acked differently before: {first}"
    # An incomplete reply does not count.
    answered = [entry for entry in history.log if entry.role == "agent" and entry.state == "complete"]
    replies = Counter(entry.reply_to for entry in answered if entry.reply_to)
    yield from (f"{message} has {count} replies" for message, count in replies.items() if count > 1)
