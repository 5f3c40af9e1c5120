"""One message that a `ReplyStream` follows. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from trunkline.v1 import message_pb2 as wire
from trunkline.v1.frame_pb2 import DeltaFrame, ReplyStatusFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, Message

from trunkline_client.accumulator import Accumulator, difference
from trunkline_client.events import Delta, Snapshot

Step: TypeAlias = Delta | Snapshot


class TrackedReply:
    """A followed message: its current state, and the steps that its follower has not taken yet.

    Text that is not taken yet is joined, so the steps are never larger than the message.
    """

    def __init__(self) -> None:
        self.whole: Accumulator | None = None
        self.ended = False
        #: Whether it may have begun, grown or ended without this client receiving it.
        self.stale = False
        #: State of the attempts, once one has failed; empty before.
        self.status = ReplyStatusFrame()
        #: Called after any change.
        self.on_change: Callable[[], None] = lambda: None
        self._steps: deque[Step] = deque()

    @property
    def has_steps(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._steps)

    def take(self) -> Step:
        """Returns the next step. Raises IndexError if there is none."""
        return self._steps.popleft()

    def begin(self, whole: Accumulator, known: Message) -> None:
        """Starts with a message that the follower knows up to `known`."""
        self.whole = whole
        self._add_difference(known, whole.message)
        self._check_end()

    def add(self, frame: DeltaFrame | wire.Delta) -> None:
        """Adds a step for a delta that `whole` has taken already."""
        assert self.whole is not None
        part = frame.part if frame.HasField("part") else None
        step = Delta(self.whole, frame.text, frame.reasoning, part)
        last = self._steps[-1] if self._steps else None
        if isinstance(last, Delta) and last.part is None and part is None:
            if step.text and last.text:
                self._steps.pop()
                step = Delta(self.whole, text=last.text + step.text)
            elif step.reasoning and last.reasoning:
                self._steps.pop()
                step = Delta(self.whole, reasoning=last.reasoning + step.reasoning)
        self._steps.append(step)
        self.on_change()

    def replace(self, whole: Accumulator) -> None:
        """Replaces the message by its current state."""
        before = self.whole.message if self.whole is not None else Message()
        self.whole = whole
        self._add_difference(before, whole.message)
        self._check_end()

    def _add_difference(self, before: Message, after: Message) -> None:
        assert self.whole is not None
        deltas = difference(before, after)
        if deltas is None:
            self._steps.clear()
            copy = Message()
            copy.CopyFrom(after)
            self._steps.append(Snapshot(copy))
        else:
            for each in deltas:
                self.add(each)

    def _check_end(self) -> None:
        assert self.whole is not None
        self.ended = self.whole.message.state != MESSAGE_STATE_OPEN
        self.stale = self.stale and not self.ended
        self.on_change()
