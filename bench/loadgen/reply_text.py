"""Streamed replies as the benchmark says them: when each delta is due, and what it says.

A delta is 20 bytes that tell when it was handed over, of which reply it is, and its index. So whoever
has the text has all there is to know, and need not look at it before the run is over.
"""

import hashlib
from collections.abc import Iterator

DELTA_BYTES = 20
DELTAS_PER_S = 50
SLOTS = 10
"""Parts of the time between two deltas of a reply; each reply speaks in one of them."""
TICKS_PER_S = DELTAS_PER_S * SLOTS


def delta_text(handed_us: int, reply: int, index: int) -> str:
    """A delta; `handed_us` counts from the start of the run."""
    return f"{handed_us:09d} {reply:04d} {index:05d}"


def marks_of(text: str) -> Iterator[tuple[int, int]]:
    """`(handed_us, index)` of each delta in a text; raises ValueError where it is no such text."""
    for at in range(0, len(text), DELTA_BYTES):
        yield int(text[at : at + 9]), int(text[at + 15 : at + DELTA_BYTES])


def due_us(reply: int, index: int) -> int:
    """When a delta is due, from the start of the run."""
    return (index * SLOTS + reply % SLOTS) * 1_000_000 // TICKS_PER_S


def digest(text: str) -> str:
    """Stands for a text when it is compared between processes."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class ReplyScript:
    """What was said so far in some replies, numbered from 0."""

    def __init__(self, replies: int) -> None:
        self._said: list[list[str]] = [[] for _ in range(replies)]
        self._turns = [range(slot, replies, SLOTS) for slot in range(SLOTS)]

    def turn(self, tick: int) -> range:
        """The replies in which a delta is due at a tick of `TICKS_PER_S`."""
        return self._turns[tick % SLOTS]

    def say(self, reply: int, handed_us: int) -> tuple[int, str]:
        """The next delta of a reply: index and text."""
        said = self._said[reply]
        said.append(delta_text(handed_us, reply, len(said)))
        return len(said) - 1, said[-1]

    def text(self, reply: int) -> str:
        """All that was said in a reply."""
        return "".join(self._said[reply])

    def counts(self) -> list[int]:
        """The number of deltas of each reply."""
        return [len(said) for said in self._said]

    def digests(self) -> list[str]:
        """What each listener's text is to be held against."""
        return [digest("".join(said)) for said in self._said]
