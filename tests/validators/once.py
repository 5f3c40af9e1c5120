"""once: who retries with the same id creates one message and gets the same answer; nothing is answered
twice by an agent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.validators.history import Acked, History


def once(history: History) -> Iterator[str]:
    """Messages that were created twice, answers that differ, and double replies."""
    keys = Counter((e.topic, e.role, e.author, e.client_id) for e in history.log if e.client_id)
    yield from (f"{key} is in the log {count} times" for key, count in keys.items() if count > 1)
    answers: dict[tuple[str, str, str], Acked] = {}
    for event in history.of(Acked):
        first = answers.setdefault((event.client, event.topic, event.id), event)
        if (first.message_id, first.place) != (event.message_id, event.place):
            yield f"{event} was answered before by {first}"
    # An answer that broke off half-way is none.
    answered = [entry for entry in history.log if entry.role == "agent" and entry.state == "complete"]
    replies = Counter(entry.reply_to for entry in answered if entry.reply_to)
    yield from (f"{message} was answered {count} times" for message, count in replies.items() if count > 1)
