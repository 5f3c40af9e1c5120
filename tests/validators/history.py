"""History of a test run: recorded events, and the contents of the logs at the end.

A client may connect several times; each connection is a session. Topics and clients are named by paths that
begin with the tenant: `demo/echo/web/group:team`, `demo/bob`. Message ids are unique among the clients of a
tenant unless a test intends otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

Kind = TypeVar("Kind")


class LogPosition(NamedTuple):
    """A position in a topic's log."""

    epoch: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStarted:
    """A connection starts a topic after `position`; `wanted` is the position it asked to resume from."""

    client: str
    session: str
    topic: str
    position: LogPosition
    wanted: LogPosition | None = None
    recovered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A client, or a backend with an idempotency key, sent or resent a message."""

    client: str
    session: str
    topic: str
    id: str
    content: str
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """A message was acked to a client, or a backend's call succeeded."""

    client: str
    session: str
    topic: str
    id: str
    message_id: str
    position: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A connection received a message; `position` is None for an ephemeral one."""

    client: str
    session: str
    topic: str
    position: LogPosition | None
    message_id: str
    client_id: str
    content: str
    at: float = 0.0
    state: str = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """A connection received a log entry other than a message: a change or a read receipt."""

    client: str
    session: str
    topic: str
    position: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A connection was notified of the end of an open message; `content` is the text it has received."""

    client: str
    session: str
    topic: str
    position: LogPosition
    message_id: str
    state: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A frame or an RPC was rejected."""

    client: str
    session: str
    id: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A connection ended. `reason` is that of the `closing` frame; `ours` means that the test broke it."""

    client: str
    session: str
    code: int
    reason: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySampled:
    """Memory of a process at some time."""

    process: str
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """Log entry at the end of the run."""

    topic: str
    position: LogPosition
    message_id: str
    role: str
    author: str
    client_id: str
    content: str
    reply_to: str = ""
    state: str = "complete"


Event = TopicStarted | Sent | Acked | Received | Advanced | Ended | Rejected | Closed | MemorySampled


@dataclass(slots=True)
class History:
    """Events in the order in which the test observed them, and the logs at the end."""

    events: list[Event] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    #: Sessions that were open and up to date when the logs were read.
    open_sessions: set[str] = field(default_factory=set)
    #: Epochs of logs that the test has erased.
    erased: set[str] = field(default_factory=set)

    def of(self, *kinds: type[Kind]) -> list[Kind]:
        """Return the events of these types."""
        return [event for event in self.events if isinstance(event, kinds)]


def tenant_of(path: str) -> str:
    """Return the tenant of a client or topic."""
    return path.partition("/")[0]
