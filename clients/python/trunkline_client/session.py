"""State of a client across its connections. Pure: frames in, effects out.

For each connection, the transport sends `first_frames()`, passes each frame that it reads to `receive`,
and calls `disconnect` when the connection is gone; it has the effects of both carried out in order. The
application begins a request with `request` at any time. It stays pending until it is answered, rejected or
given up, and is sent again on each new connection until then. Requests that the rate limit rejected are sent
again after a pause, with those begun meanwhile behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address, Conversation, Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    AckFrame,
    AuthFrame,
    AuthorizedFrame,
    ClientFrame,
    ClosingFrame,
    ConnectedFrame,
    ConnectionLimits,
    DeltaFrame,
    ErrorFrame,
    ReadFrame,
    ResumeFrame,
    ServerFrame,
    SignalFrame,
    SubscribedFrame,
    SubscribeFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, ROLE_USER, Change, Message

from trunkline_client.client_subscriptions import ClientSubscriptions
from trunkline_client.cursor import Arrival, topic_key
from trunkline_client.effects import (
    CompleteRequest,
    DropConnection,
    Effect,
    Emit,
    FailRequest,
    ForgetTopic,
    PauseSending,
    Send,
    SessionEvent,
    SetPosition,
    SetTokenExpiry,
    WarnTokenRejected,
)
from trunkline_client.events import GroupLeft, MessagesLost, Snapshot
from trunkline_client.pending_requests import PendingRequests
from trunkline_client.received_signals import ReceivedSignals
from trunkline_client.unconfirmed_reads import UnconfirmedReads

_FORBIDDEN_BY_TOKEN = "The new token does not allow the group"


class Session:
    """One client's subscriptions and pending requests."""

    def __init__(self, address: Address, resume: Iterable[TopicPosition] = ()) -> None:
        self.connection_id = ""
        self.connected = False
        self.recovered = False
        self.heartbeat_s = 0
        self.limits = ConnectionLimits()
        self.closing: ClosingFrame | None = None
        self._user = ""
        self._subscriptions = ClientSubscriptions(address, resume)
        self._requests = PendingRequests(self._subscriptions.entry_topic)
        self._own_ids = count(1)
        #: Groups that are being joined again, by request.
        self._rejoining: dict[str, Address] = {}
        #: The request with which the token is being refreshed.
        self._token_request = ""
        self._resuming = False
        self._reads = UnconfirmedReads()
        self._received_signals = ReceivedSignals()
        #: The message that a delta without an id extends.
        self._extended_id = ""
        self._handlers: dict[str, Callable[[Any], list[Effect]]] = {
            "connected": self._on_connected,
            "ack": self._on_ack,
            "message": self._on_message,
            "signal": self._on_signal,
            "read": self._on_read,
            "delivered": self._on_unlogged,
            "reply_status": self._on_unlogged,
            "delta": self._on_delta,
            "change": self._on_change,
            "cancelled": self._on_response,
            "subscribed": self._on_subscribed,
            "unsubscribed": self._on_unsubscribed,
            "history": self._on_response,
            "pong": self._on_response,
            "authorized": self._on_authorized,
            "error": self._on_error,
            "closing": self._on_closing,
        }

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<Session {state}, {len(self._subscriptions)} topics, {len(self._requests)} requests pending>"

    # For the transport and the application.

    def first_frames(self) -> list[ClientFrame]:
        """The first frames on a new connection; if there are any, connect with `resume=frame`."""
        positions = self._subscriptions.resume_positions()
        self._resuming = bool(positions)
        return [ClientFrame(resume=ResumeFrame(positions=positions))] if positions else []

    def request(self, request_id: str, frame: ClientFrame) -> list[ClientFrame]:
        """Begins a request; returns the frames to send now.

        Raises ValueError while another request of this id is pending.
        """
        self._requests.begin(request_id, frame)
        if frame.HasField("subscribe") and not frame.subscribe.HasField("position"):
            topic = self._subscriptions.topic_of(frame.subscribe.conversation)
            if (cursor := self._subscriptions.cursor(topic)) is not None:
                frame.subscribe.position.CopyFrom(cursor.position)
        return self._requests.write(request_id) if self.connected else []

    def was_sent(self, request_id: str) -> bool:
        """Whether the edge may have a request: it was sent at least once, or is no longer pending."""
        return self._requests.was_written(request_id)

    def give_up(self, request_id: str) -> None:
        """Forgets a request: it is not sent again, and an answer to it is ignored. Idempotent."""
        self._requests.end(request_id)

    def mark_read(self, frame: ReadFrame) -> list[ClientFrame]:
        """Reports a read position until it is confirmed; returns the frames to send now."""
        self._reads.add(self._subscriptions.read_topic(frame), frame)
        return [ClientFrame(read=frame)] if self.connected else []

    def refresh_token(self, token: str) -> list[ClientFrame]:
        """Presents a new token; returns the frames to send now."""
        if not self.connected:
            return []
        self._token_request = f"auth-{next(self._own_ids)}"
        frame = AuthFrame(id=self._token_request, token=token)
        self._requests.begin_internal(frame.id, ClientFrame(auth=frame))
        return self._requests.write(frame.id)

    def resume_sending(self) -> list[Effect]:
        """Sends deferred requests after a pause, as many as the edge takes in a second."""
        effects: list[Effect] = [Send(frame) for frame in self._requests.take_due(self.limits)]
        return [*effects, PauseSending(1.0)] if self._requests.has_deferred else effects

    def receive(self, frame: ServerFrame) -> list[Effect]:
        """Handles a frame. A kind of frame that is newer than this client has no effect."""
        kind = frame.WhichOneof("frame")
        if kind is None:
            return []
        return self._handlers[kind](getattr(frame, kind))

    def disconnect(self) -> list[Effect]:
        """Records that the connection is gone, and with it the signals that lived. Idempotent."""
        self.connected = False
        self.closing = None
        self._extended_id = ""
        self._requests.connection_lost()
        self._rejoining.clear()
        self._token_request = ""
        return [Emit(end) for end in self._received_signals.take_all()]

    # Connecting.

    def _on_connected(self, frame: ConnectedFrame) -> list[Effect]:
        self.connection_id, self._user = frame.connection_id, frame.user
        self.connected = True
        self.recovered = frame.recovered
        self.heartbeat_s = frame.heartbeat_s
        self.limits = frame.limits
        effects: list[Effect] = [_token_expiry(frame)]
        if self._resuming and not frame.recovered:
            effects.append(Emit(MessagesLost(tuple(frame.positions))))
            effects += map(ForgetTopic, self._subscriptions.forget_all_but_groups())
        for each in frame.positions:
            effects += self._place(each.address, each.position)
        for left in self._subscriptions.completed_unsubscribes(self._requests):
            effects += self._on_unsubscribed(left)
        for group in self._subscriptions.groups:
            effects += self._rejoin(group)
        for request_id, _ in self._requests:
            effects += map(Send, self._requests.write(request_id))
        effects += [Send(ClientFrame(read=read)) for read in self._reads]
        return effects

    def _rejoin(self, group: Conversation) -> list[Effect]:
        address = self._subscriptions.topic_of(group)
        frame = SubscribeFrame(id=f"rejoin-{next(self._own_ids)}", conversation=group)
        if (cursor := self._subscriptions.cursor(address)) is not None:
            frame.position.CopyFrom(cursor.position)
        self._rejoining[frame.id] = address
        self._requests.begin_internal(frame.id, ClientFrame(subscribe=frame))
        return [Send(each) for each in self._requests.write(frame.id)]

    # Responses.

    def _on_response(self, frame: Any) -> list[Effect]:
        return self._complete(frame.id, frame)

    def _on_ack(self, frame: AckFrame) -> list[Effect]:
        self._requests.record_answer(frame.id)
        effects = self._complete(frame.id, frame)
        cursor = self._subscriptions.cursor(frame.address)
        if cursor is not None and frame.HasField("position"):
            arrival, consequences = self._advance(frame.address, frame.position)
            effects += consequences
            if arrival is Arrival.GAP and cursor.epoch in ("", frame.position.epoch):
                cursor.record_ahead(frame.position)  # answered now, so not to be emitted when it comes back
        return effects

    def _on_subscribed(self, frame: SubscribedFrame) -> list[Effect]:
        rejoined = self._rejoining.pop(frame.id, None)
        effects = self._complete(frame.id, frame)
        if rejoined is not None and not frame.recovered:
            lost = TopicPosition(address=frame.address, position=frame.position)
            effects.append(Emit(MessagesLost((lost,))))
        self._subscriptions.add_group(frame.address)
        return effects + self._place(frame.address, frame.position)

    def _on_unsubscribed(self, frame: UnsubscribedFrame) -> list[Effect]:
        self._subscriptions.forget(frame.address)
        effects = self._complete(frame.id, frame)
        if not frame.id:
            effects.append(Emit(GroupLeft(frame.address, catalogue.FORBIDDEN.code, _FORBIDDEN_BY_TOKEN)))
        return [*effects, ForgetTopic(frame.address)]

    def _on_authorized(self, frame: AuthorizedFrame) -> list[Effect]:
        return [*self._complete(frame.id, frame), _token_expiry(frame)]

    def _on_error(self, frame: ErrorFrame) -> list[Effect]:
        topic = self._requests.record_answer(frame.id)
        effects: list[Effect]
        if frame.code == catalogue.RATE_LIMITED.code and self._requests.defer(frame.id):
            effects = [PauseSending(frame.retry_after_ms / 1000)]
        elif frame.id in self._rejoining:
            self._requests.end(frame.id)
            effects = self._on_rejoin_rejected(self._rejoining.pop(frame.id), frame)
        elif frame.id and frame.id == self._token_request:
            self._requests.end(frame.id)
            effects = [WarnTokenRejected(frame)]
        elif self._requests.end(frame.id):
            effects = [FailRequest(frame.id, frame)]
        else:
            effects = [Emit(frame)] if topic is None else []
        if topic is not None and self._has_gap():
            effects.append(DropConnection("a message is missing"))
        return effects

    def _has_gap(self) -> bool:
        """Whether there is a hole that no request of our own can fill."""
        return any(cursor.missing > self._requests.in_flight(key) for key, cursor in self._subscriptions)

    def _on_rejoin_rejected(self, group: Address, frame: ErrorFrame) -> list[Effect]:
        if frame.retryable:
            return [DropConnection(f"a group could not be joined again: {frame.message}")]
        self._subscriptions.forget(group)
        return [Emit(GroupLeft(group, frame.code, frame.message)), ForgetTopic(group)]

    def _complete(self, request_id: str, response: Any) -> list[Effect]:
        return [CompleteRequest(request_id, response)] if self._requests.end(request_id) else []

    # Entries of logs, and unlogged events.

    def _on_message(self, message: Message) -> list[Effect]:
        own = self._own_request_id(message)
        if own:
            ack = AckFrame(id=own, message_id=message.id, position=message.position, address=message.address)
            effects = self._complete(own, ack)
        else:
            effects = []
        if message.state == MESSAGE_STATE_OPEN:
            self._extended_id = message.id
        if not message.HasField("position"):
            return effects if own else [Emit(message)]
        again = Snapshot(message) if message.state == MESSAGE_STATE_OPEN else None
        return effects + self._on_entry(message.address, message.position, None if own else message, again)

    def _on_change(self, change: Change) -> list[Effect]:
        return self._on_entry(change.address, change.position, change)

    def _on_delta(self, frame: DeltaFrame) -> list[Effect]:
        if not frame.message_id:
            frame.message_id = self._extended_id
        self._extended_id = frame.message_id
        return [Emit(frame)] if frame.message_id else []

    def _on_read(self, frame: ReadFrame) -> list[Effect]:
        if frame.user == self._user:
            self._reads.confirm(self._subscriptions.read_topic(frame), frame.position)
        if not frame.HasField("at"):
            return [Emit(frame)]  # known before, so it is no entry
        return self._on_entry(frame.address, frame.at, frame)

    def _on_signal(self, frame: SignalFrame) -> list[Effect]:
        self._received_signals.record(frame)
        return [Emit(frame)]

    def _on_unlogged(self, frame: Any) -> list[Effect]:
        return [Emit(frame)]

    def _on_closing(self, frame: ClosingFrame) -> list[Effect]:
        self.closing = frame
        return []

    def _on_entry(
        self,
        address: Address,
        position: Position,
        new: SessionEvent | None,
        repeated: SessionEvent | None = None,
    ) -> list[Effect]:
        """Emits `new` for an entry that arrives for the first time, `repeated` for one that did before."""
        arrival, consequences = self._advance(address, position)
        effects: list[Effect] = []
        if arrival is Arrival.NEW_EPOCH:
            start = TopicPosition(address=address, position=Position(epoch=position.epoch))
            effects.append(Emit(MessagesLost((start,))))
        event = new if arrival in (Arrival.NEW, Arrival.NEW_EPOCH) else repeated
        if event is not None and arrival is not Arrival.GAP:
            effects.append(Emit(event))
        return effects + consequences

    def _own_request_id(self, message: Message) -> str:
        """The request that this message answers: after a resume our own messages arrive like others'."""
        request = self._requests.get(message.client_id)
        if request is None or not request.HasField("message") or message.author.role != ROLE_USER:
            return ""
        return (
            message.client_id
            if topic_key(message.address) == self._subscriptions.message_topic(request.message)
            else ""
        )

    # Positions.

    def _advance(self, address: Address, position: Position) -> tuple[Arrival, list[Effect]]:
        cursor = self._subscriptions.cursor(address)
        if cursor is None:
            return Arrival.NEW, self._place(address, position)
        arrival = cursor.record(position, self._requests.in_flight(topic_key(address)))
        if arrival is Arrival.GAP:
            reason = f"messages are missing between {cursor.seq} and {position.seq}"
            return arrival, [DropConnection(reason)]
        if arrival is Arrival.REPEATED:
            return arrival, []
        return arrival, [SetPosition(address, cursor.position)]

    def _place(self, address: Address, position: Position) -> list[Effect]:
        self._subscriptions.place(address, position)
        return [SetPosition(address, position)]


def _token_expiry(frame: ConnectedFrame | AuthorizedFrame) -> SetTokenExpiry:
    return SetTokenExpiry(frame.expires_at.ToMilliseconds() / 1000 if frame.HasField("expires_at") else None)
