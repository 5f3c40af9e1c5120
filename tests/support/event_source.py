"""Parser of server-sent events, by the algorithm of the HTML standard, section 9.2.6."""

from __future__ import annotations

import re
from typing import NamedTuple


class Event(NamedTuple):
    """Event as dispatched to listeners."""

    type: str
    data: str
    #: Last id received, in this event or an earlier one.
    last_id: str


class EventReader:
    """Parses a stream of bytes in chunks of any size."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._rest = b""
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """Process a chunk; return the events that it completes."""
        # A line ends with \r\n, \r or \n; a \r at the end of the chunk is ambiguous.
        *lines, self._rest = re.split(rb"\r\n|\r(?!\Z)|\n", self._rest + data)
        return [event for line in lines if (event := self._line(line.decode())) is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        kind, self._type = self._type, ""
        lines, self._data = self._data, []
        return Event(kind or "message", "\n".join(lines), self.last_id) if lines else None
