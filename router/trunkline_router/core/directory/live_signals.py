"""Signals with a time to live."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import SignalFrame
from trunkline_runtime.deadlines import Deadlines

from trunkline_router.core.directory.connections import ConnectedClient
from trunkline_router.core.values.topics import TopicKey

#: Living signals that one connection has sent.
MAX_OF_CONNECTION = 64
#: Living signals in one conversation, and their bytes.
MAX_OF_CONVERSATION = 1000
MAX_OF_CONVERSATION_BYTES = 1 << 20
#: Living signals of one tenant, and their bytes.
MAX_OF_TENANT = 20_000
MAX_OF_TENANT_BYTES = 16 << 20

#: The edges end signals on time; here this bounds only when they are forgotten.
GRID_S = 0.25


class LiveSignal:
    """A signal of one user in one conversation."""

    __slots__ = ("deadline", "frame", "key", "senders", "size")

    def __init__(self, key: TopicKey, frame: SignalFrame) -> None:
        self.key = key
        self.frame = frame
        self.deadline = 0.0
        self.size = 0
        #: Connections that have sent it.
        self.senders: set[ConnectedClient] = set()


class _Use:
    """Number and bytes of the signals of a conversation or tenant."""

    __slots__ = ("bytes", "count")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0


class LiveSignals:
    """The signals that live now, by conversation, user and name.

    Beyond one of the bounds above, `put` refuses a signal that is new or has grown. Nothing is kept across a
    restart: the edges end what they have sent once its time has passed.
    """

    def __init__(self) -> None:
        #: Time of the last event that was passed here.
        self.now = 0.0
        self._signals: dict[TopicKey, dict[tuple[str, str], LiveSignal]] = {}
        self._sent: dict[ConnectedClient, set[LiveSignal]] = {}
        self._uses: dict[TopicKey | str, _Use] = {}
        self._deadlines: Deadlines[LiveSignal] = Deadlines(GRID_S)

    def __len__(self) -> int:
        return len(self._deadlines)

    def put(self, key: TopicKey, frame: SignalFrame, connection: ConnectedClient, now: float) -> None:
        """Add a signal that a connection sends, or replace the user's earlier one of the same name.

        Raises Refused TOO_MANY_SIGNALS if there is no room for it; the earlier one then lives on.
        """
        self.now = now
        of_topic = self._signals.get(key) or {}
        signal = of_topic.get((frame.user, frame.name))
        size = frame.ByteSize()
        self._check_room(key, connection, signal, size)
        if signal is None:
            signal = LiveSignal(key, SignalFrame())
            of_topic[frame.user, frame.name] = signal
            self._signals[key] = of_topic
            self._count(signal, 1, size)
        else:
            self._count(signal, 0, size - signal.size)
        signal.size = size
        # A copy: the original keeps its whole batch alive.
        signal.frame.CopyFrom(frame)
        signal.senders.add(connection)
        self._sent.setdefault(connection, set()).add(signal)
        signal.deadline = now + frame.ttl_ms / 1000
        self._deadlines.set(signal, signal.deadline)

    def end(self, key: TopicKey, user: str, name: str) -> None:
        """Remove a signal that its user has ended. Idempotent."""
        signal = self._signals.get(key, {}).get((user, name))
        if signal is not None:
            self._remove(signal)

    def left(self, connection: ConnectedClient, key: TopicKey | None = None) -> list[LiveSignal]:
        """Remove and return the signals that end because a connection has left: no other has sent them.

        Without a conversation, the connection has left all of them.
        """
        ended = []
        for signal in [each for each in self._sent.get(connection, ()) if key is None or each.key == key]:
            signal.senders.discard(connection)
            self._forget_sent(connection, signal)
            if not signal.senders:
                self._remove(signal)
                ended.append(signal)
        return ended

    def of_topic(self, key: TopicKey) -> Iterator[tuple[SignalFrame, int]]:
        """Iterate over the signals that live in a topic, each with the milliseconds that remain."""
        for signal in self._signals.get(key, {}).values():
            remaining_ms = round((signal.deadline - self.now) * 1000)
            if remaining_ms > 0:
                yield signal.frame, remaining_ms

    def expire(self, now: float) -> None:
        """Forget the signals whose time has passed; the edges have sent their ends."""
        self.now = now
        for signal in self._deadlines.take_due(now):
            self._remove(signal)

    def _check_room(
        self, key: TopicKey, connection: ConnectedClient, known: LiveSignal | None, size: int
    ) -> None:
        sent = self._sent.get(connection, ())
        if len(sent) >= MAX_OF_CONNECTION and known not in sent:
            raise _too_many("a connection", f"{MAX_OF_CONNECTION}")
        new, growth = (1, size) if known is None else (0, size - known.size)
        if growth <= 0:
            return
        of_topic, of_tenant = self._uses.get(key), self._uses.get(key[0])
        if of_topic is not None:
            if of_topic.count + new > MAX_OF_CONVERSATION:
                raise _too_many("a conversation", f"{MAX_OF_CONVERSATION}")
            if of_topic.bytes + growth > MAX_OF_CONVERSATION_BYTES:
                raise _too_many("a conversation", f"{MAX_OF_CONVERSATION_BYTES} bytes of them")
        if of_tenant is not None:
            if of_tenant.count + new > MAX_OF_TENANT:
                raise _too_many("a tenant", f"{MAX_OF_TENANT}")
            if of_tenant.bytes + growth > MAX_OF_TENANT_BYTES:
                raise _too_many("a tenant", f"{MAX_OF_TENANT_BYTES} bytes of them")

    def _count(self, signal: LiveSignal, count: int, size: int) -> None:
        for place in (signal.key, signal.key[0]):
            use = self._uses.setdefault(place, _Use())
            use.count += count
            use.bytes += size
            if not use.count:
                del self._uses[place]

    def _remove(self, signal: LiveSignal) -> None:
        self._deadlines.remove(signal)
        self._count(signal, -1, -signal.size)
        of_topic = self._signals[signal.key]
        del of_topic[signal.frame.user, signal.frame.name]
        if not of_topic:
            del self._signals[signal.key]
        for connection in signal.senders:
            self._forget_sent(connection, signal)

    def _forget_sent(self, connection: ConnectedClient, signal: LiveSignal) -> None:
        sent = self._sent[connection]
        sent.discard(signal)
        if not sent:
            del self._sent[connection]


def _too_many(whose: str, limit: str) -> catalogue.Refused:
    return catalogue.TOO_MANY_SIGNALS.refused(whose=whose, limit=limit)
