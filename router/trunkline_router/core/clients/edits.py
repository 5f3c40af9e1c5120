"""Edits and recalls of messages that have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
    Author,
    Change,
    ChangeKind,
    Message,
    Part,
)

from trunkline_router.core.agents.dispatcher import Dispatcher
from trunkline_router.core.commits.commit_queue import CommitQueue
from trunkline_router.core.commits.effects import CommitListener, Read, ReadMessage
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.core.values.message_states import OPEN, RECALLED
from trunkline_router.core.values.topics import TopicKey, topic_of


@dataclass(slots=True, eq=False)
class EditRequest:
    """Somebody wants a message changed.

    `may` raises Refused where that somebody may not change this message. `unchanged` is called instead
    of the origin's `committed` where a message is to be recalled that was recalled before.
    """

    tenant: str
    message_id: str
    kind: ChangeKind.ValueType
    author: Author
    may: Callable[[Message], None]
    listener: CommitListener
    unchanged: Callable[[], None]
    parts: Sequence[Part] = ()
    #: Idempotency; see Draft.
    key: Callable[[TopicKey], bytes] | None = None
    digest: bytes = b""


class Edits:
    """Changes messages: one wish at a time for each, as a change starts from what the last one left."""

    def __init__(self, commit_queue: CommitQueue, reads: list[Read], agents: Dispatcher) -> None:
        self._commit_queue = commit_queue
        self._reads = reads
        self._agents = agents
        #: By message id: the wish that is under way, and those behind it.
        self._wishes: dict[str, deque[EditRequest]] = {}
        #: How many logs were erased: what was read before the last time may be gone.
        self._erasures = 0

    def wish(self, wish: EditRequest) -> None:
        """Take a wish; its origin is told what becomes of it."""
        waiting = self._wishes.get(wish.message_id)
        if waiting is not None:
            waiting.append(wish)
            return
        self._wishes[wish.message_id] = deque([wish])
        self._begin(wish)

    def erased(self) -> None:
        """A log was erased."""
        self._erasures += 1

    def _begin(self, wish: EditRequest) -> None:
        erasures = self._erasures

        def done(message: Message | None) -> None:
            if erasures != self._erasures:
                self._begin(wish)
                return
            try:
                self._change(wish, message)
            except Refused as reason:
                self.refused(wish, reason)

        failed = catalogue.LOG_UNAVAILABLE.refused()
        self._reads.append(
            ReadMessage(wish.tenant, wish.message_id, done, lambda: self.refused(wish, failed))
        )

    def _change(self, wish: EditRequest, message: Message | None) -> None:
        if message is None:
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=wish.message_id)
        wish.may(message)
        if message.state == OPEN:
            raise catalogue.MESSAGE_OPEN.refused(message_id=message.id)
        if message.state == RECALLED:
            if wish.kind == CHANGE_KIND_EDITED:
                raise catalogue.MESSAGE_RECALLED.refused(message_id=message.id)
            wish.unchanged()
            self.next(wish)
            return
        topic = topic_of(message.address)
        del message.parts[:]
        if wish.kind == CHANGE_KIND_RECALLED:
            message.state = RECALLED
            message.ClearField("error")
            message.attributes.clear()
            # Nobody is to answer what was taken back.
            self._agents.withdraw(topic, message)
        message.parts.extend(wish.parts)
        change = Change(
            address=message.address,
            message_id=message.id,
            kind=wish.kind,
            state=message.state,
            author=wish.author,
        )
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=wish.key(topic) if wish.key else None,
            digest=wish.digest,
            change=change,
            listener=EditCommit(self, wish),
        )
        self._commit_queue.add(pending, message.ByteSize())

    def refused(self, wish: EditRequest, reason: Refused) -> None:
        """Nothing comes of a wish."""
        wish.listener.refused(PendingEntry(("", "", "", 0, ""), Message()), reason)
        self.next(wish)

    def next(self, wish: EditRequest) -> None:
        """A wish has been dealt with: on to the one behind it."""
        waiting = self._wishes[wish.message_id]
        waiting.popleft()
        if waiting:
            self._begin(waiting[0])
        else:
            del self._wishes[wish.message_id]


class EditCommit:
    """Origin of a change; stands before the origin of the wish."""

    __slots__ = ("_changing", "_wish", "connection")

    def __init__(self, changing: Edits, wish: EditRequest) -> None:
        self._changing = changing
        self._wish = wish
        self.connection: ConnectedClient | None = wish.listener.connection

    @property
    def blocked_by(self) -> set[Link]:
        """Those of whoever made the wish."""
        return self._wish.listener.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The change is on disk, now or before."""
        self._wish.listener.committed(pending)
        self._changing.next(self._wish)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """It is not."""
        self._wish.listener.refused(pending, reason)
        self._changing.next(self._wish)
