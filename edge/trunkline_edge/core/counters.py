"""Counters of one edge."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Causes of ends that the edge did not decide on. The client sent a close frame;
CLIENT_LEFT = "CLIENT_LEFT"
#: its TCP connection ended without one;
CLIENT_LOST = "CLIENT_LOST"
#: or it sent bytes that are no WebSocket frame.
CLIENT_BROKE_PROTOCOL = "CLIENT_BROKE_PROTOCOL"


@dataclass(slots=True)
class EdgeCounters:
    """Totals since the edge started."""

    opened: int = 0
    closed: int = 0
    #: `closed` by cause: one of the above, or the catalogue's code with which the edge closed.
    closed_by: Counter[str] = field(default_factory=Counter)
    #: Bytes that were no TLS, HTTP or WebSocket, one a connection.
    protocol_errors: int = 0
    frames_in: int = 0
    frames_refused: int = 0
    #: Frames passed to sockets: one message to a thousand subscribers counts a thousand.
    deliveries: int = 0
    #: Frames for connections that were closing or gone.
    dropped: int = 0
    batches_in: int = 0
    slow_consumers: int = 0
    #: Rejected frames and connects, by the catalogue's code.
    refused_by: Counter[str] = field(default_factory=Counter)
    links: int = 0
    #: TCP connections that were closed for a new one, as they were idle or had sent no request yet.
    connections_displaced: int = 0
    #: TCP connections, and HTTP requests, that were rejected because of the bounds of connections.
    connections_rejected: int = 0
    #: Deltas from the router.
    deltas_in: int = 0
    #: Frames with deltas, and the deltas in them, each times its subscribers.
    delta_frames: int = 0
    deltas_delivered: int = 0

    def count_closed(self, cause: str) -> None:
        """Count the end of an accepted connection."""
        self.closed += 1
        self.closed_by[cause] += 1

    def count_undelivered(self, frames: int) -> None:
        """Turn deliveries into drops: the frames were counted but never reached their socket."""
        self.deliveries -= frames
        self.dropped += frames

    def count_deltas(self, frames: int, deltas: int, subscribers: int) -> None:
        """Count the delivery of `deltas` in `frames` to each of `subscribers`."""
        self.deliveries += frames * subscribers
        self.delta_frames += frames * subscribers
        self.deltas_delivered += deltas * subscribers
