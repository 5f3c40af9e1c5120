"""Signals with a time to live, kept for subscribers that come later and for their ends."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1.edge_service_pb2 import TopicFrame
from trunkline.v1.frame_pb2 import SIGNAL_END_EXPIRED, ServerFrame, SignalFrame
from trunkline_runtime.deadlines import Deadlines

from trunkline_edge.core.topic import SubscribedTopic, TopicSignal

#: Bounds of the signals kept on one edge. Beyond them, the signal that is due first ends early.
MAX_SIGNALS = 100_000
MAX_BYTES = 64 << 20

#: Signals end at multiples of this.
GRID_S = 0.05

#: Time after which a signal ends that was not published again since a new link came up: it may have ended
#: while there was none. The edges of those that still live publish them again.
UNCONFIRMED_S = 5.0


class TopicSignals:
    """The signals that live in the topics of this edge, by user and name in `SubscribedTopic.signals`.

    They outlive the link, as a new router knows none: those that clients of this edge have sent are sent to
    it again.
    """

    def __init__(self) -> None:
        #: Time of the batch that is being handled, on the clock of `take_due`.
        self.now = 0.0
        self._bytes = 0
        self._deadlines: Deadlines[TopicSignal] = Deadlines(GRID_S)

    def __len__(self) -> int:
        return len(self._deadlines)

    def put(self, topic: SubscribedTopic, published: TopicFrame) -> None:
        """Keep a signal that is published, in place of the user's earlier one of the same name.

        Call `make_room` first.
        """
        frame, excluded = published.frame.signal, getattr(published, "except")
        if topic.signals is None:
            topic.signals = {}
        signal = topic.signals.get((frame.user, frame.name))
        if signal is None:
            signal = topic.signals[frame.user, frame.name] = TopicSignal(topic)
            signal.excluded = excluded
        elif signal.excluded != excluded:
            signal.excluded = 0
        if excluded:
            signal.sender = excluded
        # A copy: the original keeps its whole batch alive.
        signal.frame.CopyFrom(frame)
        size = frame.ByteSize()
        self._bytes += size - signal.size
        signal.size = size
        signal.deadline = self.now + frame.ttl_ms / 1000
        self._deadlines.set(signal, signal.deadline)

    def take(self, topic: SubscribedTopic, user: str, name: str) -> TopicSignal | None:
        """Remove and return a signal that ends; None if it does not live here."""
        signal = topic.signals.get((user, name)) if topic.signals else None
        if signal is not None:
            self._deadlines.remove(signal)
            self._forget(signal)
        return signal

    def take_due(self, now: float) -> list[TopicSignal]:
        """Remove and return the signals whose time has passed."""
        self.now = now
        due = self._deadlines.take_due(now)
        for signal in due:
            self._forget(signal)
        return due

    def make_room(self) -> list[TopicSignal]:
        """Remove and return the signals due first, until there is room for one more."""
        due: list[TopicSignal] = []
        while len(self._deadlines) >= MAX_SIGNALS or self._bytes >= MAX_BYTES:
            for signal in self._deadlines.take_due(self._deadlines.next_due or 0.0):
                self._forget(signal)
                due.append(signal)
        return due

    def relinked(self, now: float) -> list[tuple[int, SignalFrame]]:
        """A new link is up. Return the signals to send again, each with the connection that sent it.

        All end after UNCONFIRMED_S unless they are published again.
        """
        self.now = now
        sent = []
        for signal in self._deadlines:
            if signal.sender:
                frame = self._remaining(signal)
                if frame is not None:
                    sent.append((signal.sender, frame))
            self._deadlines.set(signal, min(signal.deadline, now + UNCONFIRMED_S))
        return sent

    def of_topic(self, topic: SubscribedTopic) -> Iterator[tuple[TopicSignal, ServerFrame]]:
        """Iterate over the signals that live in a topic, each as it is sent to a later subscriber."""
        for signal in topic.signals.values() if topic.signals else ():
            frame = self._remaining(signal)
            if frame is not None:
                yield signal, ServerFrame(signal=frame)

    def forget_topic(self, topic: SubscribedTopic) -> None:
        """Forget the signals of a topic without subscribers."""
        for signal in list(topic.signals.values()) if topic.signals else ():
            self._deadlines.remove(signal)
            self._forget(signal)

    @property
    def next_due(self) -> float | None:
        """Time of the next `take_due`; None if no signal lives."""
        return self._deadlines.next_due

    def _remaining(self, signal: TopicSignal) -> SignalFrame | None:
        """Return a signal with the time that remains; None if none does."""
        remaining_ms = round((signal.deadline - self.now) * 1000)
        if remaining_ms <= 0:
            return None
        frame = SignalFrame()
        frame.CopyFrom(signal.frame)
        frame.ttl_ms = remaining_ms
        return frame

    def _forget(self, signal: TopicSignal) -> None:
        self._bytes -= signal.size
        signals = signal.topic.signals
        assert signals is not None
        del signals[signal.frame.user, signal.frame.name]


def expired(signal: TopicSignal) -> ServerFrame:
    """Return the end of a signal whose time has passed."""
    frame = SignalFrame(name=signal.frame.name, user=signal.frame.user, end=SIGNAL_END_EXPIRED)
    frame.conversation.CopyFrom(signal.frame.conversation)
    return ServerFrame(signal=frame)
