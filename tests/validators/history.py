"""What happened in a run: the events that tests record, and what the log held at the end.

A client is someone who may come again; each of its connections is a life. A topic is named by a path
that begins with its tenant, and so is a client: `demo/echo/web/group:team`, `demo/bob`. Ids of
messages are unique among all clients of a tenant unless a test means otherwise.
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
    """A connection began to hear a topic after `place`; `wanted` is where it asked to go on from."""

    client: str
    life: str
    topic: str
    place: LogPosition
    wanted: LogPosition | None = None
    recovered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A client, or a backend with an idempotency key, sent a message, for the first time or again."""

    client: str
    life: str
    topic: str
    id: str
    content: str
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """An `ack`, or an OK to a backend."""

    client: str
    life: str
    topic: str
    id: str
    message_id: str
    place: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A connection was shown a message; `place` is None for one that is not kept."""

    client: str
    life: str
    topic: str
    place: LogPosition | None
    message_id: str
    client_id: str
    content: str
    at: float = 0.0
    state: str = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """A connection was told of an entry of the log that is no message: a change, or what somebody read."""

    client: str
    life: str
    topic: str
    place: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A connection was told that an open message has ended; `content` is what it has of it by then."""

    client: str
    life: str
    topic: str
    place: LogPosition
    message_id: str
    state: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An `error`, or the refusal of an RPC."""

    client: str
    life: str
    id: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A connection ended. `reason` is that of the `closing` frame; `ours`: the test broke it by force."""

    client: str
    life: str
    code: int
    reason: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySampled:
    """A process held so much memory."""

    process: str
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """An entry of a log at the end."""

    topic: str
    place: LogPosition
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
    """Events in the order in which the test saw them, and the logs at the end."""

    events: list[Event] = field(default_factory=list)
    log: list[LogEntry] = field(default_factory=list)
    #: Connections that were open when the logs were read, and by then had been sent all there was.
    open_lives: set[str] = field(default_factory=set)
    #: Lives of logs that the test had erased.
    erased: set[str] = field(default_factory=set)

    def of(self, *kinds: type[Kind]) -> list[Kind]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


def tenant_of(path: str) -> str:
    """The tenant of a client or a topic."""
    return path.partition("/")[0]
