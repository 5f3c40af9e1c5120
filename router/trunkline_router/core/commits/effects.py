"""Effects: everything that the core asks of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import Message

from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import Page, PageRequest, PendingEntry
from trunkline_router.core.values.stored_records import StoredDelivery
from trunkline_router.core.values.topics import Position, TopicKey


class ReadHeads(NamedTuple):
    """Read the heads of these logs, then call `done`, or `failed` if they cannot be read."""

    topics: Sequence[TopicKey]
    done: Callable[[list[Position]], None]
    failed: Callable[[], None]


class ReadDelivered(NamedTuple):
    """Read the positions delivered to users, then call `done`, or `failed` if they cannot be read."""

    users: Sequence[tuple[TopicKey, str]]
    done: Callable[[list[Position]], None]
    failed: Callable[[], None]


class ReadPages(NamedTuple):
    """Read these pages, then call `done`, or `failed` if they cannot be read."""

    requests: Sequence[PageRequest]
    done: Callable[[list[Page]], None]
    failed: Callable[[], None]
    #: The link that the pages will go to; wait while its outbox is full.
    link: Link | None = None


class ReadDeliveries(NamedTuple):
    """Read an agent's unsettled deliveries after an id, then call `done`, or `failed`."""

    tenant: str
    agent: str
    after: int
    limit: int
    done: Callable[[list[StoredDelivery]], None]
    failed: Callable[[], None]


class CountWaiting(NamedTuple):
    """Count an agent's unsettled deliveries, then call `done`, or `failed` if they cannot be counted."""

    tenant: str
    agent: str
    done: Callable[[int], None]
    failed: Callable[[], None]


class ReadMessage(NamedTuple):
    """Read one message in its present form, then call `done`, with None if there is none, or `failed`."""

    tenant: str
    message_id: str
    done: Callable[[Message | None], None]
    failed: Callable[[Refused], None]


Read = ReadHeads | ReadDelivered | ReadPages | ReadDeliveries | CountWaiting | ReadMessage


class Effects:
    """Effects that the runtime must perform after each event: writes, reads and commits.

    Every part of the core adds to the same object. The runtime performs the effects and removes them.
    """

    __slots__ = ("commit_queue", "reads", "writable_peers")

    def __init__(self) -> None:
        #: Links, workers and watchers whose outboxes have something to write.
        self.writable_peers: set[Any] = set()
        #: Reads of the log; each ends with a call of its `done` or `failed`.
        self.reads: list[Read] = []
        #: Entries and atomic writes to commit.
        self.commit_queue = CommitQueue()


class CommitListener(Protocol):
    """The source of an entry, notified of its result."""

    #: The author's connection, which gets no copy of its own message; None for other sources.
    connection: ConnectedClient | None

    @property
    def blocked_by(self) -> set[Link]:
        """Links whose outboxes this source has filled; it must send no more until they have room."""

    def committed(self, pending: PendingEntry) -> None:
        """The entry is on disk: COMMITTED now, or a DUPLICATE of an earlier one."""

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The entry was not committed."""
