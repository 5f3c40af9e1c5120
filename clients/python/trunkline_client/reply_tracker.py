"""Open messages as they were received, and who follows which. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from trunkline.v1 import message_pb2 as wire
from trunkline.v1.address_pb2 import Address
from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Change,
    Message,
)

from trunkline_client.accumulator import Accumulator, difference
from trunkline_client.events import Delta, Event, MessageChanged, MessagesLost, SessionEvent, Snapshot

Step: TypeAlias = Delta | Snapshot


class TrackedReply:
    """One message that somebody follows: how it is, and what is still to be told of it.

    Text that nobody has taken yet is joined, so what waits is never larger than the message.
    """

    def __init__(self) -> None:
        self.whole: Accumulator | None = None
        self.ended = False
        #: It may have begun, grown or ended unseen.
        self.doubtful = False
        #: Called when any of this has changed.
        self.on_change: Callable[[], None] = lambda: None
        self._waiting: deque[Step] = deque()

    @property
    def has_steps(self) -> bool:
        """Whether something is to be told."""
        return bool(self._waiting)

    def take(self) -> Step:
        """What is to be told next. Raises IndexError where there is nothing."""
        return self._waiting.popleft()

    def begin(self, whole: Accumulator, known: Message) -> None:
        """It is there, and this much of it is known already."""
        self.whole = whole
        self._tell_difference(known, whole.message)
        self._end_if_ended()

    def add(self, frame: DeltaFrame | wire.Delta) -> None:
        """It has grown; `whole` has too."""
        assert self.whole is not None
        part = frame.part if frame.HasField("part") else None
        step = Delta(self.whole, frame.text, frame.reasoning, part)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, Delta) and last.part is None and part is None:
            if step.text and last.text:
                self._waiting.pop()
                step = Delta(self.whole, text=last.text + step.text)
            elif step.reasoning and last.reasoning:
                self._waiting.pop()
                step = Delta(self.whole, reasoning=last.reasoning + step.reasoning)
        self._waiting.append(step)
        self.on_change()

    def replace(self, whole: Accumulator) -> None:
        """It is like this now, whatever was known."""
        before = self.whole.message if self.whole is not None else Message()
        self.whole = whole
        self._tell_difference(before, whole.message)
        self._end_if_ended()

    def _tell_difference(self, before: Message, after: Message) -> None:
        assert self.whole is not None
        new = difference(before, after)
        if new is None:
            self._waiting.clear()
            copy = Message()
            copy.CopyFrom(after)
            self._waiting.append(Snapshot(copy))
        else:
            for each in new:
                self.add(each)

    def _end_if_ended(self) -> None:
        assert self.whole is not None
        self.ended = self.whole.message.state != MESSAGE_STATE_OPEN
        self.doubtful = self.doubtful and not self.ended
        self.on_change()


class Replies:
    """Sorts what a session tells: what is followed goes to whoever follows it, the rest to the application.

    A question is followed by its id before that is known: until its `ack`, replies that come are held
    back, as each may be its own. All are of agents, and few.
    """

    def __init__(self) -> None:
        self._open: dict[str, Accumulator] = {}
        self._followed: dict[str, TrackedReply] = {}
        #: By the id of the question.
        self._asked: dict[str, TrackedReply] = {}
        #: Questions whose ids are not known yet.
        self._asking: set[TrackedReply] = set()
        self._early: dict[str, TrackedReply] = {}

    def __repr__(self) -> str:
        return f"<Replies {len(self._open)} open, {len(self._followed)} followed, {len(self._asked)} awaited>"

    # For those who follow.

    def asking(self, following: TrackedReply) -> None:
        """A question is about to be asked."""
        self._asking.add(following)

    def asked(self, following: TrackedReply, message_id: str) -> list[Event]:
        """It has this id; returns what was held back for nothing."""
        self._asking.discard(following)
        early = self._early.pop(message_id, None)
        if early is None or early.whole is None:
            self._asked[message_id] = following
        else:
            self._followed.pop(early.whole.id, None)
            self._begin(following, early.whole, Message())
        return self._release()

    def follow(self, following: TrackedReply, message: Message) -> None:
        """Follows a message, of which this much is known. Raises ValueError where another one does."""
        if message.id in self._followed:
            raise ValueError(f"message {message.id} is followed already")
        whole = self._open.get(message.id)
        if whole is None:
            copy = Message()
            copy.CopyFrom(message)
            whole = Accumulator(copy)
            following.doubtful = message.state == MESSAGE_STATE_OPEN
        self._begin(following, whole, message)

    def leave(self, following: TrackedReply) -> list[Event]:
        """Follows no more; returns what was held back for nothing."""
        self._asking.discard(following)
        for each in (self._asked, self._followed):
            for key in [key for key, value in each.items() if value is following]:
                del each[key]
        return self._release()

    def found(self, messages: Iterable[Message]) -> None:
        """Messages as a page of the log has them: what was doubtful may be among them."""
        for message in messages:
            following = self._followed.get(message.id)
            if following is not None and message.state != MESSAGE_STATE_OPEN:
                self._open.pop(message.id, None)
                self._followed.pop(message.id)
                following.replace(Accumulator(message))
            elif following is None and message.reply_to in self._asked and _is_reply(message):
                self._begun(message)

    def end(self) -> None:
        """Nothing more will come."""
        for following in (*self._followed.values(), *self._asked.values()):
            following.on_change()

    def _begin(self, following: TrackedReply, whole: Accumulator, known: Message) -> None:
        if whole.message.state == MESSAGE_STATE_OPEN:
            self._followed[whole.id] = following
        following.begin(whole, known)

    def _release(self) -> list[Event]:
        if self._asking:
            return []
        held = [each.whole for each in self._early.values() if each.whole is not None]
        self._early.clear()
        for whole in held:
            self._followed.pop(whole.id, None)
        return [_copy(whole.message) for whole in held]

    # For the session.

    def sort(self, told: SessionEvent) -> list[Event]:
        """Takes note of what was told; returns what the application is to be told of it."""
        match told:
            case Message():
                return self._begun(told)
            case DeltaFrame():
                return self._grown(told)
            case Snapshot(message):
                return self._seen_again(message)
            case Change():
                return self._changed(told)
            case MessagesLost():
                for following in (*self._followed.values(), *self._asked.values()):
                    following.doubtful = True
                    following.on_change()
                return [told]
            case _:
                return [told]

    def forget(self, address: Address) -> None:
        """A topic is heard no more."""
        for key in [key for key, each in self._open.items() if each.message.address == address]:
            if key not in self._followed:
                del self._open[key]

    def _begun(self, message: Message) -> list[Event]:
        whole = Accumulator(_copy(message)) if message.state == MESSAGE_STATE_OPEN else Accumulator(message)
        if message.state == MESSAGE_STATE_OPEN:
            self._open[message.id] = whole
        following = self._asked.pop(message.reply_to, None) if _is_reply(message) else None
        if following is None and self._asking and _is_reply(message) and message.reply_to not in self._early:
            following = self._early[message.reply_to] = TrackedReply()
        if following is None:
            return [message]
        self._begin(following, whole, Message())
        return []

    def _grown(self, frame: DeltaFrame) -> list[Event]:
        whole = self._open.get(frame.message_id)
        if whole is None:
            return []
        following = self._followed.get(frame.message_id)
        if following is not None:
            whole.add(frame)
            following.add(frame)
            return []
        whole.add(frame)
        return [Delta(whole, frame.text, frame.reasoning, frame.part if frame.HasField("part") else None)]

    def _seen_again(self, message: Message) -> list[Event]:
        if message.id not in self._open:
            return self._begun(message)
        whole = self._open[message.id] = Accumulator(_copy(message))
        following = self._followed.get(message.id)
        if following is None:
            return [Snapshot(message)]
        following.replace(whole)
        return []

    def _changed(self, change: Change) -> list[Event]:
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
        following = self._followed.pop(change.message_id, None)
        if following is None or message is None:
            return [MessageChanged(change, message)]
        following.replace(Accumulator(message))
        return []


def _is_reply(message: Message) -> bool:
    return bool(message.reply_to) and message.author.role == ROLE_AGENT


def _copy(message: Message) -> Message:
    copy = Message()
    copy.CopyFrom(message)
    return copy
