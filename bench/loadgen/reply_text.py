"""Text and schedule of the benchmark's streamed replies.

A delta is 20 bytes: the time when it was sent, its reply and its index. The received text therefore contains
everything needed to evaluate a run, and is parsed only afterwards.
"""

import hashlib
from collections.abc import Iterator

DELTA_BYTES = 20
DELTAS_PER_S = 50
SLOTS = 10
"""Parts of the interval between two deltas of a reply; each reply sends in one of them."""


def delta_text(sent_us: int, reply: int, index: int) -> str:
    """Return a delta; `sent_us` counts from the start of the run."""
    return f"{sent_us:09d} {reply:04d} {index:05d}"


def marks_of(text: str) -> Iterator[tuple[int, int]]:
    """Yield `(sent_us, index)` of each delta in a text; raise ValueError if it is malformed."""
    for at in range(0, len(text), DELTA_BYTES):
        yield int(text[at : at + 9]), int(text[at + 15 : at + DELTA_BYTES])


def due_us(reply: int, index: int, deltas_per_s: int = DELTAS_PER_S) -> int:
    """Return the due time of a delta, from the start of the run."""
    return (index * SLOTS + reply % SLOTS) * 1_000_000 // (deltas_per_s * SLOTS)


def digest(text: str) -> str:
    """Return a digest for comparing texts between processes."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class ReplyScript:
    """Deltas sent so far in each reply, numbered from 0."""

    def __init__(self, replies: int) -> None:
        self._sent: list[list[str]] = [[] for _ in range(replies)]
        self._slots = [range(slot, replies, SLOTS) for slot in range(SLOTS)]

    def due_replies(self, tick: int) -> range:
        """Return the replies in which a delta is due at a tick, of which there are SLOTS for each delta."""
        return self._slots[tick % SLOTS]

    def next_delta(self, reply: int, sent_us: int) -> tuple[int, str]:
        """Add a delta to a reply; return its index and text."""
        deltas = self._sent[reply]
        deltas.append(delta_text(sent_us, reply, len(deltas)))
        return len(deltas) - 1, deltas[-1]

    def text(self, reply: int) -> str:
        """Return the text of a reply so far."""
        return "".join(self._sent[reply])

    def counts(self) -> list[int]:
        """Return the number of deltas of each reply."""
        return [len(deltas) for deltas in self._sent]

    def digests(self) -> list[str]:
        """Return the digest of each reply."""
        return [digest("".join(deltas)) for deltas in self._sent]
