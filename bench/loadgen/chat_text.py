"""Chat text of the benchmarks: 80 characters that contain its due time and number."""

import re

LENGTH = 80
MARK = re.compile(rb"@(\d{19})#(\d{8}) ")
_FILLER = "the quick brown fox jumps over the lazy dog, then asks again"


def chat_text(number: int, due_ns: int) -> str:
    """Return a text of `LENGTH` characters; `due_ns` is on the monotonic clock, which all processes share."""
    return f"@{due_ns:019d}#{number:08d} {_FILLER}"[:LENGTH]


def mark_of(frame: bytes) -> tuple[int, int] | None:
    """Return `(due_ns, number)` of the first chat text in a frame of any encoding."""
    found = MARK.search(frame)
    return (int(found[1]), int(found[2])) if found else None
