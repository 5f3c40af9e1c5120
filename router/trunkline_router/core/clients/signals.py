"""Signals between clients, with and without a time to live. They are not logged."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import SIGNAL_END_LEFT, SignalFrame

from trunkline_router.core.clients.conversations import writable_conversation
from trunkline_router.core.clients.message_completion import ClientMessageCompletion
from trunkline_router.core.clients.received_frame import ReceivedFrame
from trunkline_router.core.commits.fan_out import FanOut
from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.live_signals import LiveSignals
from trunkline_router.core.values.topics import TopicKey, address_of


class Signals:
    """Publishes signals to the other subscribers, and the ends of those whose senders have left.

    The edges keep those with a time to live, and end them when it has passed.
    """

    def __init__(self, fan_out: FanOut, live_signals: LiveSignals, outbox: ClientOutbox) -> None:
        self._fan_out = fan_out
        self._live_signals = live_signals
        self._outbox = outbox

    def handle_signal(self, received: ReceivedFrame[SignalFrame]) -> None:
        """Publish a signal to the other subscribers."""
        connection, frame, size, now = received
        topic = writable_conversation(connection, frame)
        frame.user = connection.user
        frame.conversation.CopyFrom(address_of(topic).conversation)
        lives = bool(frame.ttl_ms or frame.end)
        if lives:
            self._note(topic, frame, connection, now)
        self._publish(topic, frame, size, connection, lives=lives)

    def left(self, connection: ConnectedClient, topic: TopicKey | None = None) -> None:
        """A connection has left a conversation, or all: end the signals that only it has sent."""
        for signal in self._live_signals.left(connection, topic):
            frame = SignalFrame(name=signal.frame.name, user=signal.frame.user, end=SIGNAL_END_LEFT)
            frame.conversation.CopyFrom(signal.frame.conversation)
            self._publish(signal.key, frame, frame.ByteSize(), connection, lives=True)

    def link_lost(self, link: Link) -> None:
        """A link is lost, and whatever its clients do now is unknown: end their signals."""
        for connection in link.connections.values():
            self.left(connection)

    def _note(self, topic: TopicKey, frame: SignalFrame, connection: ConnectedClient, now: float) -> None:
        if not frame.end:
            self._live_signals.put(topic, frame, connection, now)
        elif frame.ttl_ms:
            problem = "must be 0 if this is the end of the signal"
            raise catalogue.INVALID_ARGUMENT.refused(field="ttl_ms", problem=problem)
        else:
            # Published even if it is unknown here: the edges may know it from before a restart.
            self._live_signals.end(topic, frame.user, frame.name)

    def _publish(
        self, topic: TopicKey, frame: SignalFrame, size: int, author: ConnectedClient, *, lives: bool
    ) -> None:
        source = ClientMessageCompletion(self._outbox, author, "")
        for publish in self._fan_out.add(topic, size, source, for_later=lives):
            publish.frame.signal.CopyFrom(frame)
