"""Exchanges whose response is one reply of the agent: as it is written, or once it has ended."""

from __future__ import annotations

from abc import abstractmethod

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Position
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import (
    REPLY_STATUS_RETRYING,
    AckFrame,
    ClientFrame,
    ConnectedFrame,
    HistoryFrame,
    HistoryPageFrame,
    MessageFrame,
    ReplyStatusFrame,
    ServerFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    Author,
    Change,
    Message,
    MessageState,
)

from trunkline_edge.dialects.codec import StreamingMode
from trunkline_edge.dialects.dialect import HttpReply
from trunkline_edge.dialects.exchange import Exchange
from trunkline_edge.dialects.reply_progress import Addition, ReplyConflict, ReplyProgress

#: Frames of the conversation that may come before it is known which reply is wanted; beyond them the request
#: is refused.
MAX_EARLY_FRAMES = 2000
#: Messages behind a repeated one among which its reply is looked for.
HISTORY_MESSAGES = 100
#: Id of the exchange's own `history` request.
_HISTORY_ID = "exchange-history"


class ReplyExchange(Exchange):
    """Sends a message and answers with the agent's first reply to it.

    A message that is repeated, with the same id, gets the reply to the first: from its beginning, live if it
    is still open. A subclass renders the reply, as a stream or whole:

    - A stream: `opened`, `added` for each addition, `ended`; each returns events.
    - Whole: `whole` returns the response. Set `streaming` to COMPLETE.
    """

    #: Begins the response to a message once that is stored: from then on the client waits for events, and
    #: failures are events. Empty to wait for the reply.
    greeting = b": accepted\n\n"

    def __init__(self, message: MessageFrame | None = None, *, whole: bool = False) -> None:
        super().__init__()
        self.streaming = StreamingMode.COMPLETE if whole else StreamingMode.DELTAS
        if message is not None:
            self.requests.append(ClientFrame(message=message))
        #: The message that is answered; empty until the router has it.
        self.message_id = ""
        self._position = Position()
        #: The reply; empty until it is known.
        self.reply_id = ""
        self._progress = ReplyProgress(self._add)
        self._events: list[bytes] = []
        #: Frames about replies, from before it is known which one is wanted.
        self._early: list[ServerFrame] | None = []
        #: The conversation's last entry before this connection.
        self._start_seq = 0
        self._is_opened = False
        #: No attempt to answer the message follows, and no reply to it has come.
        self._is_unanswered = False
        #: Attempts have failed, so a reply may be open but sends nothing before its end. The log names it.
        self._asks_log = False

    # Frames

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange. A reply that contradicts what was written breaks the stream."""
        try:
            self._receive(frame)
        except ReplyConflict:
            self.is_broken = True
        return self.take_events()

    def _receive(self, frame: ServerFrame) -> None:
        match frame.WhichOneof("frame"):
            case "message" | "delta" | "change" | "reply_status" if self._early is not None:
                self._keep(self._early, frame)
            case "message":
                self._receive_message(frame.message)
            case "delta" if frame.delta.message_id == self.reply_id:
                self._progress.delta(frame.delta)
            case "change" if frame.change.message_id == self.reply_id:
                self._receive_change(frame.change)
            case "reply_status" if frame.reply_status.message_id == self.message_id and not self.reply_id:
                self._receive_status(frame.reply_status)
            case "connected":
                self._connected(frame.connected)
            case "ack":
                self._acknowledged(frame.ack)
            case "history":
                self.history_read(frame.history)

    def heartbeat(self) -> bytes:
        """See Codec. Also ends the wait for a reply to a message that was settled or withdrawn without one.

        Not at once: an agent may settle a message first, and answer it in its own time.
        """
        if not self._is_unanswered or self.reply_id or self.is_decided:
            return super().heartbeat()
        if self._asks_log:
            self.request_history().after.CopyFrom(self._position)
            return b""
        self._receive_message(self._no_reply(MESSAGE_STATE_COMPLETE))
        events = self.take_events()
        self.has_begun = self.has_begun or bool(events)
        return events

    def _no_reply(self, state: MessageState.ValueType) -> Message:
        """An empty reply in place of the one that does not come."""
        author = Author(role=ROLE_AGENT)
        return Message(id=self.message_id, reply_to=self.message_id, author=author, state=state)

    def _keep(self, early: list[ServerFrame], frame: ServerFrame) -> None:
        if len(early) < MAX_EARLY_FRAMES:
            early.append(frame)
        else:
            self.refused = catalogue.OVERLOADED.refused(problem="too much is said in this conversation")

    def _connected(self, connected: ConnectedFrame) -> None:
        for each in connected.positions:
            if each.address.HasField("conversation"):
                self._start_seq = each.position.seq
                return
        problem = "the token does not grant the right to subscribe, so no reply would come"
        self.refused = catalogue.FORBIDDEN.refused(problem=problem)

    def _acknowledged(self, ack: AckFrame) -> None:
        """The message is stored: now, or by an earlier request, whose reply may have ended already."""
        self.is_accepted = True
        self._position = ack.position
        if ack.position.seq > self._start_seq:
            self.await_reply(ack.message_id)
            return
        self.message_id = ack.message_id
        request = self.request_history()
        request.after.CopyFrom(ack.position)

    def request_history(self) -> HistoryFrame:
        """Request a page of the conversation's log, to be narrowed by the caller; `history_read` gets it."""
        self.requests.append(ClientFrame(history=HistoryFrame(id=_HISTORY_ID, limit=HISTORY_MESSAGES)))
        return self.requests[-1].history

    def history_read(self, page: HistoryPageFrame) -> None:
        """Answer with the reply to the message, or wait for it."""
        found = next(filter(self._is_answer, page.messages), None)
        if self._asks_log:
            self._learn(found)
            return
        if found is not None and found.state != MESSAGE_STATE_OPEN:
            self._early = None
            self._receive_message(found)
        self.await_reply(self.message_id)

    def _learn(self, found: Message | None) -> None:
        """Handle the reply in the log to a message to which no further attempt is made."""
        self._asks_log = False
        if self.reply_id or self.is_decided:
            return
        self._receive_message(found if found is not None else self._no_reply(MESSAGE_STATE_CANCELLED))

    def await_reply(self, message_id: str) -> None:
        """Answer with the first reply to this message, whose frames may have come already."""
        self.is_accepted = True
        self.message_id = message_id
        if self.streaming is StreamingMode.DELTAS and not self.is_decided:
            self._events.append(self.greeting)
        self._replay()

    def attach(self, reply_id: str) -> None:
        """Answer with this reply, whose frames have come already."""
        self.is_accepted = True
        self.reply_id = reply_id
        self._replay()

    def _replay(self) -> None:
        early, self._early = self._early, None
        for frame in early or ():
            if not self.is_decided:
                self._events.append(self.received(frame))

    def early_messages(self) -> list[Message]:
        """The messages that have come so far, before it is known which reply is wanted."""
        return [frame.message for frame in self._early or () if frame.HasField("message")]

    # The reply

    def _receive_message(self, message: Message) -> None:
        if self.is_decided:
            return
        if not self.reply_id and self._is_answer(message):
            self.reply_id = message.id
        if message.id != self.reply_id:
            return
        if self.streaming is StreamingMode.COMPLETE:
            if message.state != MESSAGE_STATE_OPEN:
                self.answer = self.whole(message)
            return
        if not self._is_opened:
            self._is_opened = True
            self._events.append(self.opened(message))
        self._progress.snapshot(message)
        if message.state != MESSAGE_STATE_OPEN:
            self._end(message.state, message.error, message)

    def _is_answer(self, message: Message) -> bool:
        is_to_it = bool(message.reply_to) and message.reply_to == self.message_id
        return is_to_it and message.author.role == ROLE_AGENT

    def _receive_change(self, change: Change) -> None:
        if change.kind == CHANGE_KIND_EDITED:
            return
        message = change.message if change.HasField("message") else None
        if message is not None:
            self._progress.snapshot(message)
        self._end(change.state, change.error, message)

    def _receive_status(self, status: ReplyStatusFrame) -> None:
        """The agent has failed so far, or has done with the message without a reply."""
        if status.status == REPLY_STATUS_RETRYING:
            if self.has_begun or any(self._events):
                self._events.append(self.retrying(status))
        elif status.attempts and self.streaming is StreamingMode.DELTAS:
            self._end(MESSAGE_STATE_CANCELLED, Error(), None)
        else:
            self._is_unanswered = True
            self._asks_log = bool(status.attempts)

    def _add(self, addition: Addition) -> None:
        self._events.append(self.added(addition))

    def _end(self, state: MessageState.ValueType, error: Error, message: Message | None) -> None:
        self._events.append(self.ended(state, error, message))
        self.is_complete = True

    def take_events(self) -> bytes:
        """Return the events that were rendered since the last call."""
        if not self._events:
            return b""
        events = b"".join(self._events)
        self._events.clear()
        return events

    # For dialects

    @abstractmethod
    def opened(self, message: Message) -> bytes:
        """Events for a reply that was opened; its parts follow. Must not be empty."""

    @abstractmethod
    def added(self, addition: Addition) -> bytes:
        """Events for an addition to the reply."""

    @abstractmethod
    def ended(self, state: MessageState.ValueType, error: Error, message: Message | None) -> bytes:
        """Events for the end of the reply, with the protocol's terminal event.

        CANCELLED may come without `opened`: the message was withdrawn, or settled without a reply. `error` is
        the reason for FAILED; `message` is the whole reply if it is at hand.
        """

    def retrying(self, status: ReplyStatusFrame) -> bytes:
        """Events for an attempt to answer that failed and will be repeated; nothing by default."""
        return b""

    def whole(self, message: Message) -> HttpReply:
        """The response for a reply that has ended, in whatever state; see MessageState."""
        raise NotImplementedError
