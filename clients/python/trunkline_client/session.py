"""What a client knows and wants, whatever becomes of its sockets. Pure: frames in, effects out.

The shell does, for each socket: send `first_frames()`, pass each frame it reads to `received` and
carry out the effects in order, and call `disconnected` when the socket is gone. A request is begun
with `ask`, at any time; it stays until it is answered, refused or given up, and is sent again on each
new connection until then. What is refused because too much was sent is sent again after a pause, with all
that was begun meanwhile behind it.
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
    CancelledFrame,
    ClientFrame,
    ClosingFrame,
    ConnectedFrame,
    ConnectionLimits,
    DeliveredFrame,
    DeltaFrame,
    ErrorFrame,
    HistoryPageFrame,
    PongFrame,
    ReadFrame,
    ResumeFrame,
    ServerFrame,
    SignalFrame,
    SubscribedFrame,
    SubscribeFrame,
    UnsubscribedFrame,
)
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, ROLE_USER, Change, Message

from trunkline_client.cursor import Arrival, Cursor, topic_key
from trunkline_client.events import (
    CompleteRequest,
    DropConnection,
    Effect,
    Emit,
    FailRequest,
    ForgetTopic,
    GroupLeft,
    MessagesLost,
    PauseSending,
    Send,
    SessionEvent,
    SetPosition,
    SetTokenExpiry,
    Snapshot,
    WarnTokenRejected,
)
from trunkline_client.pending_requests import ANY_TOPIC, PendingRequests
from trunkline_client.unconfirmed_reads import UnconfirmedReads

_NOT_ALLOWED_NOW = "The token that was shown last does not allow the group"


class Session:
    """One client's positions, groups and unanswered requests."""

    def __init__(self, address: Address, resume: Iterable[TopicPosition] = ()) -> None:
        self.connection_id = ""
        self._user = ""
        self.connected = False
        self.recovered = False
        self.heartbeat_s = 0
        self.limits = ConnectionLimits()
        self.closing: ClosingFrame | None = None
        self._address = address
        self._topics: dict[bytes, Address] = {}
        self._cursors: dict[bytes, Cursor] = {}
        self._groups: dict[bytes, Conversation] = {}
        self._requests = PendingRequests(self._topic_of_entry)
        self._own_ids = count(1)
        self._rejoining: dict[str, bytes] = {}
        #: The id under which another token was shown.
        self._renewing = ""
        self._resuming = False
        self._reads = UnconfirmedReads()
        #: The message that a delta without id goes on with.
        self._growing = ""
        self._handlers: dict[str, Callable[[Any], list[Effect]]] = {
            "connected": self._on_connected,
            "ack": self._on_ack,
            "message": self._on_message,
            "signal": self._on_signal,
            "read": self._on_read,
            "delivered": self._on_delivered,
            "delta": self._on_delta,
            "change": self._on_change,
            "cancelled": self._on_cancelled,
            "subscribed": self._on_subscribed,
            "unsubscribed": self._on_unsubscribed,
            "history": self._on_history,
            "pong": self._on_pong,
            "authorized": self._on_authorized,
            "error": self._on_error,
            "closing": self._on_closing,
        }
        for each in resume:
            self._place(each.address, each.position)

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<Session {state}, {len(self._cursors)} topics, {len(self._requests)} unanswered>"

    # What the shell calls.

    def first_frames(self) -> list[ClientFrame]:
        """What to send first on a new socket. Where it is not empty, connect with `resume=frame`.

        Groups are not resumed here but joined again with their positions once connected.
        """
        positions = [
            TopicPosition(address=self._topics[key], position=cursor.position)
            for key, cursor in self._cursors.items()
            if not self._is_group(self._topics[key])
        ]
        self._resuming = bool(positions)
        return [ClientFrame(resume=ResumeFrame(positions=positions))] if positions else []

    def ask(self, request_id: str, frame: ClientFrame) -> list[ClientFrame]:
        """Begins a request; returns what to send now.

        Raises ValueError while another request of this id is unanswered.
        """
        self._requests.begin(request_id, frame)
        if frame.HasField("subscribe") and not frame.subscribe.HasField("position"):
            cursor = self._cursors.get(topic_key(self._topic_of(frame.subscribe.conversation)))
            if cursor is not None:
                frame.subscribe.position.CopyFrom(cursor.position)
        return self._requests.write(request_id) if self.connected else []

    def read(self, frame: ReadFrame) -> list[ClientFrame]:
        """Tells how far this user has read, until that has come back; returns what to send now."""
        self._reads.add(self._topic_of_read(frame), frame)
        return [ClientFrame(read=frame)] if self.connected else []

    def give_up(self, request_id: str) -> None:
        """Forgets a request: it is not sent again, and an answer to it is not told. Idempotent."""
        self._requests.end(request_id)

    def renew(self, token: str) -> list[ClientFrame]:
        """Shows another token; returns what to send now."""
        if not self.connected:
            return []
        self._renewing = f"auth-{next(self._own_ids)}"
        frame = AuthFrame(id=self._renewing, token=token)
        self._requests.begin_own(frame.id, ClientFrame(auth=frame))
        return self._requests.write(frame.id)

    def go_on(self) -> list[Effect]:
        """A pause is over: sends what was held back, as much as the edge takes in a second."""
        effects: list[Effect] = [Send(frame) for frame in self._requests.due(self.limits)]
        return [*effects, PauseSending(1.0)] if self._requests.are_held_back else effects

    def received(self, frame: ServerFrame) -> list[Effect]:
        """Deals with a frame. A frame of a kind that is newer than this client has no effect."""
        kind = frame.WhichOneof("frame")
        if kind is None:
            return []
        return self._handlers[kind](getattr(frame, kind))

    def disconnected(self) -> None:
        """The socket is gone. Idempotent."""
        self.connected = False
        self.closing = None
        self._growing = ""
        self._requests.connection_lost()
        self._rejoining.clear()
        self._renewing = ""

    # Connecting.

    def _on_connected(self, frame: ConnectedFrame) -> list[Effect]:
        self.connection_id, self._user = frame.connection_id, frame.user
        self.connected = True
        self.recovered = frame.recovered
        self.heartbeat_s = frame.heartbeat_s
        self.limits = frame.limits
        effects: list[Effect] = [_expiry(frame)]
        if self._resuming and not frame.recovered:
            effects.append(Emit(MessagesLost(tuple(frame.positions))))
            effects += [
                ForgetTopic(address) for address in list(self._topics.values()) if self._unplace(address)
            ]
        for each in frame.positions:
            effects += self._place(each.address, each.position)
        effects += self._leave_what_was_being_left()
        for key, group in self._groups.items():
            effects += self._rejoin(key, group)
        for request_id, _ in self._requests:
            effects += map(Send, self._requests.write(request_id))
        effects += [Send(ClientFrame(read=read)) for read in self._reads]
        return effects

    def _unplace(self, address: Address) -> bool:
        """Forgets the position of a topic that is no group's."""
        if self._is_group(address):
            return False
        key = topic_key(address)
        del self._topics[key], self._cursors[key]
        return True

    def _leave_what_was_being_left(self) -> list[Effect]:
        """A new connection has joined nothing, so leaving a group is done unless joining it is asked too."""
        joining = {
            topic_key(self._topic_of(request.subscribe.conversation))
            for _, request in self._requests
            if request.HasField("subscribe")
        }
        effects: list[Effect] = []
        for request_id, request in self._requests:
            if request.HasField("unsubscribe"):
                address = self._topic_of(request.unsubscribe.conversation)
                if topic_key(address) not in joining:
                    effects += self._on_unsubscribed(UnsubscribedFrame(id=request_id, address=address))
        return effects

    def _rejoin(self, key: bytes, group: Conversation) -> list[Effect]:
        frame = SubscribeFrame(id=f"rejoin-{next(self._own_ids)}", conversation=group)
        if key in self._cursors:
            frame.position.CopyFrom(self._cursors[key].position)
        self._rejoining[frame.id] = key
        self._requests.begin_own(frame.id, ClientFrame(subscribe=frame))
        return [Send(each) for each in self._requests.write(frame.id)]

    # Answers.

    def _on_ack(self, frame: AckFrame) -> list[Effect]:
        self._requests.landed(frame.id)
        effects = self._answer(frame.id, frame)
        cursor = self._cursors.get(topic_key(frame.address))
        if cursor is not None and frame.HasField("position"):
            arrival, consequences = self._advance(frame.address, frame.position)
            effects += consequences
            if arrival is Arrival.GAP and cursor.epoch in ("", frame.position.epoch):
                cursor.hold(frame.position)  # answered now, so it must not be told when it comes back
        return effects

    def _on_subscribed(self, frame: SubscribedFrame) -> list[Effect]:
        rejoined = self._rejoining.pop(frame.id, None)
        effects = self._answer(frame.id, frame)
        if rejoined is not None and not frame.recovered:
            effects.append(
                Emit(MessagesLost((TopicPosition(address=frame.address, position=frame.position),)))
            )
        self._groups[topic_key(frame.address)] = frame.address.conversation
        return effects + self._place(frame.address, frame.position)

    def _on_unsubscribed(self, frame: UnsubscribedFrame) -> list[Effect]:
        key = topic_key(frame.address)
        self._groups.pop(key, None)
        self._topics.pop(key, None)
        self._cursors.pop(key, None)
        effects = self._answer(frame.id, frame)
        if not frame.id:
            effects.append(Emit(GroupLeft(frame.address, catalogue.FORBIDDEN.code, _NOT_ALLOWED_NOW)))
        return [*effects, ForgetTopic(frame.address)]

    def _on_history(self, frame: HistoryPageFrame) -> list[Effect]:
        return self._answer(frame.id, frame)

    def _on_pong(self, frame: PongFrame) -> list[Effect]:
        return self._answer(frame.id, frame)

    def _on_cancelled(self, frame: CancelledFrame) -> list[Effect]:
        return self._answer(frame.id, frame)

    def _on_authorized(self, frame: AuthorizedFrame) -> list[Effect]:
        return [*self._answer(frame.id, frame), _expiry(frame)]

    def _on_error(self, frame: ErrorFrame) -> list[Effect]:
        topic = self._requests.landed(frame.id)
        effects: list[Effect]
        if frame.code == catalogue.RATE_LIMITED.code and self._requests.hold_back(frame.id):
            effects = [PauseSending(frame.retry_after_ms / 1000)]
        elif frame.id in self._rejoining:
            self._requests.end(frame.id)
            effects = self._not_rejoined(self._rejoining.pop(frame.id), frame)
        elif frame.id and frame.id == self._renewing:
            self._requests.end(frame.id)
            effects = [WarnTokenRejected(frame)]
        elif self._requests.end(frame.id):
            effects = [FailRequest(frame.id, frame)]
        else:
            effects = [Emit(frame)] if topic is None else []
        if topic is not None and self._misses_something():
            effects.append(DropConnection("a message is missing"))
        return effects

    def _misses_something(self) -> bool:
        """Whether there is a hole that nothing of our own can fill."""
        return any(cursor.holes > self._requests.in_flight(key) for key, cursor in self._cursors.items())

    def _not_rejoined(self, key: bytes, frame: ErrorFrame) -> list[Effect]:
        if frame.retryable:
            return [DropConnection(f"a group could not be joined again: {frame.message}")]
        address = self._topics.pop(key)
        del self._groups[key], self._cursors[key]
        return [Emit(GroupLeft(address, frame.code, frame.message)), ForgetTopic(address)]

    # What others say.

    def _on_message(self, message: Message) -> list[Effect]:
        own = self._own_id(message)
        if own:
            ack = AckFrame(id=own, message_id=message.id, position=message.position, address=message.address)
            effects = self._answer(own, ack)
        else:
            effects = []
        if message.state == MESSAGE_STATE_OPEN:
            self._growing = message.id
        if not message.HasField("position"):
            return effects if own else [Emit(message)]
        again = Snapshot(message) if message.state == MESSAGE_STATE_OPEN else None
        return effects + self._entered(message.address, message.position, None if own else message, again)

    def _on_change(self, change: Change) -> list[Effect]:
        return self._entered(change.address, change.position, change)

    def _on_delta(self, frame: DeltaFrame) -> list[Effect]:
        if not frame.message_id:
            frame.message_id = self._growing
        self._growing = frame.message_id
        return [Emit(frame)] if frame.message_id else []

    def _entered(
        self,
        address: Address,
        position: Position,
        told: SessionEvent | None,
        again: SessionEvent | None = None,
    ) -> list[Effect]:
        """An entry of a log: it is told once; `again` is told where it was there before."""
        arrival, consequences = self._advance(address, position)
        effects: list[Effect] = []
        if arrival is Arrival.NEW_EPOCH:
            start = Position(epoch=position.epoch)
            effects.append(Emit(MessagesLost((TopicPosition(address=address, position=start),))))
        event = told if arrival in (Arrival.NEW, Arrival.NEW_EPOCH) else again
        if event is not None and arrival is not Arrival.GAP:
            effects.append(Emit(event))
        return effects + consequences

    def _on_signal(self, frame: SignalFrame) -> list[Effect]:
        return [Emit(frame)]

    def _on_read(self, frame: ReadFrame) -> list[Effect]:
        if frame.user == self._user:
            self._reads.confirmed(self._topic_of_read(frame), frame.position)
        if not frame.HasField("at"):
            return [Emit(frame)]  # known before, so not an entry
        return self._entered(frame.address, frame.at, frame)

    def _on_delivered(self, frame: DeliveredFrame) -> list[Effect]:
        return [Emit(frame)]

    def _on_closing(self, frame: ClosingFrame) -> list[Effect]:
        self.closing = frame
        return []

    def _own_id(self, message: Message) -> str:
        """The request that this message answers: after a recovery our own messages come like others'."""
        request = self._requests.get(message.client_id)
        if request is None or not request.HasField("message") or message.author.role != ROLE_USER:
            return ""
        return message.client_id if topic_key(message.address) == self._topic_of_message(request) else ""

    # Positions.

    def _advance(self, address: Address, position: Position) -> tuple[Arrival, list[Effect]]:
        key = topic_key(address)
        cursor = self._cursors.get(key)
        if cursor is None:
            return Arrival.NEW, self._place(address, position)
        arrival = cursor.arrived(position, self._requests.in_flight(key))
        if arrival is Arrival.GAP:
            return arrival, [
                DropConnection(f"a message is missing before {position.seq}, {cursor.seq} was the last")
            ]
        if arrival is Arrival.REPEATED:
            return arrival, []
        return arrival, [SetPosition(address, cursor.position)]

    def _place(self, address: Address, position: Position) -> list[Effect]:
        key = topic_key(address)
        cursor = self._cursors.get(key)
        if cursor is None or not cursor.stands_at(position):
            self._topics[key] = address
            self._cursors[key] = Cursor(position)
        return [SetPosition(address, position)]

    # Small things.

    def _answer(self, request_id: str, answer: Any) -> list[Effect]:
        return [CompleteRequest(request_id, answer)] if self._requests.end(request_id) else []

    def _topic_of_entry(self, frame: ClientFrame) -> bytes | None:
        if frame.HasField("message"):
            return self._topic_of_message(frame)
        return ANY_TOPIC if frame.HasField("edit") or frame.HasField("recall") else None

    def _topic_of_message(self, frame: ClientFrame) -> bytes:
        if frame.message.HasField("conversation"):
            return topic_key(self._topic_of(frame.message.conversation))
        return topic_key(self._address)

    def _topic_of_read(self, frame: ReadFrame) -> bytes:
        if frame.HasField("address"):
            return topic_key(frame.address)
        return topic_key(
            self._topic_of(frame.conversation) if frame.HasField("conversation") else self._address
        )

    def _topic_of(self, conversation: Conversation) -> Address:
        own = self._address
        return Address(tenant=own.tenant, agent=own.agent, platform=own.platform, conversation=conversation)

    def _is_group(self, address: Address) -> bool:
        return address.HasField("conversation") and address.conversation != self._address.conversation


def _expiry(frame: ConnectedFrame | AuthorizedFrame) -> SetTokenExpiry:
    return SetTokenExpiry(frame.expires_at.ToMilliseconds() / 1000 if frame.HasField("expires_at") else None)
