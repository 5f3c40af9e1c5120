"""Open messages as a client has received them, and the replies that it follows. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from trunkline.v1.address_pb2 import Address
from trunkline.v1.frame_pb2 import (
    REPLY_STATUS_ENDED,
    REPLY_STATUS_RETRYING,
    DeltaFrame,
    ReplyStatusFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Change,
    Message,
)

from trunkline_client.accumulator import Accumulator
from trunkline_client.effects import SessionEvent
from trunkline_client.events import Delta, Event, MessageChanged, MessagesLost, Snapshot
from trunkline_client.tracked_reply import TrackedReply

#: Questions that nobody follows any more, the end of whose status is still left out of iteration; beyond it,
#: that of the oldest one is yielded.
MAX_LATE = 1000


class ReplyTracker:
    """Sorts the session's events: those of followed messages go to their followers, others to iteration.

    A question's reply may arrive before the `ack` with the question's id. So until then, all replies of
    agents are held back; they are few.
    """

    def __init__(self) -> None:
        self._open: dict[str, Accumulator] = {}
        self._followed: dict[str, TrackedReply] = {}
        #: Followers of replies that have not begun, by the id of the question.
        self._awaited: dict[str, TrackedReply] = {}
        #: Followers whose questions are not acked yet.
        self._unacked: set[TrackedReply] = set()
        #: Followers by the id of the question, for as long as they follow.
        self._questions: dict[str, TrackedReply] = {}
        #: Questions without a follower that were being retried when it left.
        self._late: dict[str, None] = {}
        #: Replies held back, by the id of their question.
        self._early: dict[str, TrackedReply] = {}

    def __repr__(self) -> str:
        counts = f"{len(self._open)} open, {len(self._followed)} followed, {len(self._awaited)} awaited"
        return f"<ReplyTracker {counts}>"

    # For followers.

    def begin_question(self, reply: TrackedReply) -> None:
        """Announces a question whose id is not known yet."""
        self._unacked.add(reply)

    def set_question_id(self, reply: TrackedReply, message_id: str) -> list[Event]:
        """Sets the question's id; returns the events that were held back needlessly."""
        self._unacked.discard(reply)
        self._questions[message_id] = reply
        early = self._early.pop(message_id, None)
        if early is None or early.whole is None:
            self._awaited[message_id] = reply
        else:
            self._followed.pop(early.whole.id, None)
            self._begin(reply, early.whole, Message())
        return self._release_early()

    def follow(self, reply: TrackedReply, message: Message) -> None:
        """Follows a message from its current text. Raises ValueError if it is followed already."""
        if message.id in self._followed:
            raise ValueError(f"message {message.id} is followed already")
        whole = self._open.get(message.id)
        if whole is None:
            whole = Accumulator(_copy(message))
            reply.stale = message.state == MESSAGE_STATE_OPEN
        self._begin(reply, whole, message)

    def leave(self, reply: TrackedReply) -> list[Event]:
        """Stops following; returns the events that were held back needlessly."""
        self._unacked.discard(reply)
        if reply.status.status == REPLY_STATUS_RETRYING:
            self._late[reply.status.message_id] = None
            while len(self._late) > MAX_LATE:
                del self._late[next(iter(self._late))]
        for each in (self._awaited, self._followed, self._questions):
            for key in [key for key, value in each.items() if value is reply]:
                del each[key]
        return self._release_early()

    def merge_history(self, messages: Iterable[Message]) -> None:
        """Updates stale replies from a page of the log."""
        for message in messages:
            reply = self._followed.get(message.id)
            if reply is not None and message.state != MESSAGE_STATE_OPEN:
                self._open.pop(message.id, None)
                self._followed.pop(message.id)
                reply.replace(Accumulator(message))
            elif reply is None and message.reply_to in self._awaited and _is_reply(message):
                self._on_message(message)

    def end(self) -> None:
        """Wakes all followers: the client has ended."""
        for reply in (*self._followed.values(), *self._awaited.values()):
            reply.on_change()

    def _begin(self, reply: TrackedReply, whole: Accumulator, known: Message) -> None:
        if whole.message.state == MESSAGE_STATE_OPEN:
            self._followed[whole.id] = reply
        reply.begin(whole, known)

    def _release_early(self) -> list[Event]:
        if self._unacked:
            return []
        released = [each.whole for each in self._early.values() if each.whole is not None]
        self._early.clear()
        for whole in released:
            self._followed.pop(whole.id, None)
        return [_copy(whole.message) for whole in released]

    # For the session.

    def track(self, event: SessionEvent) -> list[Event]:
        """Records an event; returns the events for the application."""
        match event:
            case Message():
                return self._on_message(event)
            case DeltaFrame():
                return self._on_delta(event)
            case Snapshot(message):
                return self._on_snapshot(message)
            case Change():
                return self._on_change(event)
            case ReplyStatusFrame():
                return self._on_status(event)
            case MessagesLost():
                for reply in (*self._followed.values(), *self._awaited.values()):
                    reply.stale = True
                    reply.on_change()
                return [event]
            case _:
                return [event]

    def forget(self, address: Address) -> None:
        """Forgets the open messages of a topic whose subscription has ended."""
        for key in [key for key, each in self._open.items() if each.message.address == address]:
            if key not in self._followed:
                del self._open[key]

    def _on_message(self, message: Message) -> list[Event]:
        whole = Accumulator(_copy(message)) if message.state == MESSAGE_STATE_OPEN else Accumulator(message)
        if message.state == MESSAGE_STATE_OPEN:
            self._open[message.id] = whole
        reply = self._awaited.pop(message.reply_to, None) if _is_reply(message) else None
        if reply is None and self._unacked and _is_reply(message) and message.reply_to not in self._early:
            reply = self._early[message.reply_to] = TrackedReply()
        if reply is None:
            return [message]
        self._begin(reply, whole, Message())
        return []

    def _on_delta(self, frame: DeltaFrame) -> list[Event]:
        whole = self._open.get(frame.message_id)
        if whole is None:
            return []
        whole.add(frame)
        reply = self._followed.get(frame.message_id)
        if reply is not None:
            reply.add(frame)
            return []
        return [Delta(whole, frame.text, frame.reasoning, frame.part if frame.HasField("part") else None)]

    def _on_snapshot(self, message: Message) -> list[Event]:
        if message.id not in self._open:
            return self._on_message(message)
        whole = self._open[message.id] = Accumulator(_copy(message))
        reply = self._followed.get(message.id)
        if reply is None:
            return [Snapshot(message)]
        reply.replace(whole)
        return []

    def _on_status(self, status: ReplyStatusFrame) -> list[Event]:
        reply = self._questions.get(status.message_id)
        if reply is not None:
            reply.status = status
            reply.on_change()
            return []
        if status.status == REPLY_STATUS_ENDED and status.message_id in self._late:
            del self._late[status.message_id]
            return []
        return [status]

    def _on_change(self, change: Change) -> list[Event]:
        whole = self._open.pop(change.message_id, None) if change.kind == CHANGE_KIND_ENDED else None
        if change.HasField("message"):
            message: Message | None = change.message
        elif whole is not None:
            message = whole.message
            message.state = change.state
            message.updated_at.CopyFrom(change.changed_at)
            if change.HasField("error"):
                message.error.CopyFrom(change.error)
        else:
            message = None
        reply = self._followed.pop(change.message_id, None)
        if reply is None or message is None:
            return [MessageChanged(change, message)]
        reply.replace(Accumulator(message))
        return []


def _is_reply(message: Message) -> bool:
    return bool(message.reply_to) and message.author.role == ROLE_AGENT


def _copy(message: Message) -> Message:
    copy = Message()
    copy.CopyFrom(message)
    return copy
