"""Edits and recalls of messages that have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

from trunkline_router.core.agents.withdrawal import Withdrawals
from trunkline_router.core.commits.effects import CommitListener, Effects, ReadMessage
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.values.log_records import PendingEntry
from trunkline_router.core.values.message_states import OPEN, RECALLED
from trunkline_router.core.values.topics import TopicKey, topic_of


@dataclass(slots=True, eq=False)
class EditRequest:
    """Request to edit or recall a message.

    `authorize` raises Refused if the requester may not change this message. `already_recalled` is called
    instead of the listener's `committed` if the message was recalled before.
    """

    tenant: str
    message_id: str
    kind: ChangeKind.ValueType
    author: Author
    authorize: Callable[[Message], None]
    listener: CommitListener
    already_recalled: Callable[[], None]
    #: New parts of an edit.
    parts: Sequence[Part] = ()
    #: Idempotency; see PendingEntry.
    key: Callable[[TopicKey], bytes] | None = None
    digest: bytes = b""


class Edits:
    """Changes messages, one request at a time for each message, as each starts from the last result."""

    def __init__(self, effects: Effects, withdrawals: Withdrawals) -> None:
        self._effects = effects
        self._withdrawals = withdrawals
        #: By message id: the request in progress and those that wait for it.
        self._requests: dict[str, deque[EditRequest]] = {}
        #: Number of erasures so far: a message read before the last one may be gone.
        self._erasures = 0

    def submit(self, request: EditRequest) -> None:
        """Queue a request; its listener receives the outcome."""
        waiting = self._requests.get(request.message_id)
        if waiting is not None:
            waiting.append(request)
            return
        self._requests[request.message_id] = deque([request])
        self._begin(request)

    def log_erased(self) -> None:
        """A log, or part of one, was erased."""
        self._erasures += 1

    def _begin(self, request: EditRequest) -> None:
        erasures = self._erasures

        def done(message: Message | None) -> None:
            if erasures != self._erasures:
                self._begin(request)
                return
            try:
                self._change(request, message)
            except Refused as reason:
                self._refuse(request, reason)

        read = ReadMessage(request.tenant, request.message_id, done, partial(self._refuse, request))
        self._effects.reads.append(read)

    def _change(self, request: EditRequest, message: Message | None) -> None:
        if message is None:
            raise catalogue.MESSAGE_NOT_FOUND.refused(message_id=request.message_id)
        request.authorize(message)
        if message.state == OPEN:
            raise catalogue.MESSAGE_OPEN.refused(message_id=message.id)
        if message.state == RECALLED:
            if request.kind == CHANGE_KIND_EDITED:
                raise catalogue.MESSAGE_RECALLED.refused(message_id=message.id)
            request.already_recalled()
            self.finish(request)
            return
        topic = topic_of(message.address)
        del message.parts[:]
        if request.kind == CHANGE_KIND_RECALLED:
            message.state = RECALLED
            message.ClearField("error")
            message.attributes.clear()
            self._withdrawals.withdraw(topic, message, request.author)
        message.parts.extend(request.parts)
        change = Change(
            address=message.address,
            message_id=message.id,
            kind=request.kind,
            state=message.state,
            author=request.author,
        )
        pending = PendingEntry(
            topic=topic,
            message=message,
            key=request.key(topic) if request.key else None,
            digest=request.digest,
            change=change,
            listener=EditCommit(self, request),
        )
        self._effects.commit_queue.add(pending, message.ByteSize())

    def _refuse(self, request: EditRequest, reason: Refused) -> None:
        request.listener.refused(PendingEntry(("", "", "", 0, ""), Message()), reason)
        self.finish(request)

    def finish(self, request: EditRequest) -> None:
        """End a request and begin the next one for the same message."""
        waiting = self._requests[request.message_id]
        waiting.popleft()
        if waiting:
            self._begin(waiting[0])
        else:
            del self._requests[request.message_id]


class EditCommit:
    """Listener of a change; passes the outcome to the request's listener."""

    __slots__ = ("_edits", "_request", "connection")

    def __init__(self, edits: Edits, request: EditRequest) -> None:
        self._edits = edits
        self._request = request
        self.connection: ConnectedClient | None = request.listener.connection

    @property
    def blocked_by(self) -> set[Link]:
        """Those of the request's listener."""
        return self._request.listener.blocked_by

    def committed(self, pending: PendingEntry) -> None:
        """The change is committed, now or before."""
        self._request.listener.committed(pending)
        self._edits.finish(self._request)

    def refused(self, pending: PendingEntry, reason: Refused) -> None:
        """The change was not committed."""
        self._request.listener.refused(pending, reason)
        self._edits.finish(self._request)
