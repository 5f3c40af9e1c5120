"""The interface of exchanges: one HTTP request that a connection of the edge's core answers.

A route with an exchange (`ExchangeRoute` in dialect.py) takes part in everything that a connection does:
admission by the client's own token, budgets, rate limits, joined deltas, the bounds of the outbox. The
transport reads the whole body, calls the route's `connect` for a plan whose codec is a new Exchange, and then
does what the exchange decides, after each frame:

- `requests` go to the router as the client's frames; each is answered by a frame with its id.
- `answer` is the whole response, in JSON; or
- `encode` returns events of a response that is a stream, until `is_complete`.
- `refused` rejects the request in the form of the route's `render_refusal`, if nothing was written yet.
- `is_broken` ends the connection before the body's last chunk, because stock clients take any clean end as
  success.

A client that disconnects cancels nothing. Every response closes its connection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping

from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import ClientFrame, ClosingFrame, ServerFrame
from trunkline_runtime.refusals import refusal_of

from trunkline_edge.dialects.codec import Codec, Decoded, Framing
from trunkline_edge.dialects.dialect import HttpReply


class Exchange(Codec):
    """One request and its response. The only codec with state: it belongs to one connection.

    The core calls `encode` once for each frame, in order: `connected`, the conversation's open messages with
    their text so far, then what is published. It calls `subscribed` once everything that was open has come.
    After a lost link the open messages come again. With the streaming mode COMPLETE there are neither deltas
    nor changes, but one message when it ends.
    """

    framing = Framing.CHUNKS
    is_exchange = True
    #: Headers of a response that is a stream.
    stream_headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        #: Frames for the router; the transport takes them after each call.
        self.requests: deque[ClientFrame] = deque()
        #: The router has taken the request: the deadline of the handshake no longer applies.
        self.is_accepted = False
        self.answer: HttpReply | None = None
        self.refused: Refused | None = None
        #: `encode` has returned an event.
        self.has_begun = False
        self.is_complete = False
        self.is_broken = False

    # Calls of the core

    def decode(self, payload: bytes, binary: bool = False) -> Decoded:
        """See Codec: the next request, whatever the payload; none once the response is decided."""
        return self.requests.popleft() if self.requests and not self.is_decided else None

    def count_values(self, payload: bytes, decoded: Decoded) -> int:
        """See Codec. The body was read before, and most of it is not passed on."""
        return 0

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec: events for a frame; nothing once the response is decided."""
        if self.is_decided:
            return b""
        match frame.WhichOneof("frame"):
            case "closing":
                events = self._closed(frame.closing)
            case "error" if not self.has_begun:
                self.refused = refusal_of(frame.error)
                return b""
            case _:
                events = self.received(frame)
        self.has_begun = self.has_begun or bool(events)
        return events

    def subscribed(self) -> bytes:
        """Events once the connection is subscribed to its topics, and all open messages have come."""
        if self.is_decided:
            return b""
        events = self.caught_up()
        self.has_begun = self.has_begun or bool(events)
        return events

    def heartbeat(self) -> bytes:
        """See Codec. A comment in the stream, for proxies that close idle connections."""
        return b": ping\n\n" if self.has_begun and not self.is_decided else b""

    @property
    def is_decided(self) -> bool:
        """The response is whole, or will never be."""
        return self.is_complete or self.is_broken or self.answer is not None or self.refused is not None

    def _closed(self, closing: ClosingFrame) -> bytes:
        reason = refusal_of(closing)
        if not self.has_begun:
            self.refused = reason
            return b""
        events = self.interrupted(reason)
        self.is_complete = bool(events)
        self.is_broken = not events
        return events

    # For dialects

    @abstractmethod
    def received(self, frame: ServerFrame) -> bytes:
        """Handle a frame; return events to write, or nothing."""

    def caught_up(self) -> bytes:
        """Handle that all open messages have come; return events to write, or nothing."""
        return b""

    def interrupted(self, reason: Refused) -> bytes:
        """Return the last events of a stream that ends before its reply does; nothing to cut it off."""
        return b""

    def end(self, events: bytes) -> bytes:
        """Complete the stream with its last events."""
        self.is_complete = True
        return events
