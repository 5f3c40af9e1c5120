"""Signals with a time to live that a client was sent, until they end."""

from __future__ import annotations

from trunkline.v1.frame_pb2 import SIGNAL_END_EXPIRED, SignalFrame

#: Signals that are kept. Beyond it the oldest is forgotten: a lost connection does not end it.
MAX_SIGNALS = 10_000

_Key = tuple[bytes, str, str]


class ReceivedSignals:
    """The signals that live in the client's conversations.

    A connection that is lost is sent no ends, and its successor is sent what still lives. So `take_all`
    ends everything, and what lives begins again.
    """

    def __init__(self) -> None:
        self._signals: dict[_Key, SignalFrame] = {}

    def record(self, signal: SignalFrame) -> None:
        """Records a signal that was received, or the end of one."""
        key = (signal.conversation.SerializeToString(deterministic=True), signal.user, signal.name)
        self._signals.pop(key, None)
        if signal.ttl_ms and not signal.end:
            self._signals[key] = signal
            if len(self._signals) > MAX_SIGNALS:
                del self._signals[next(iter(self._signals))]

    def take_all(self) -> list[SignalFrame]:
        """Removes all signals and returns their ends."""
        signals, self._signals = self._signals, {}
        return [
            SignalFrame(name=one.name, conversation=one.conversation, user=one.user, end=SIGNAL_END_EXPIRED)
            for one in signals.values()
        ]
