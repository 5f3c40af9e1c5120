"""Counters of one edge."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Causes for which a connection ends that the edge has not closed itself. The client said goodbye;
CLIENT_LEFT = "CLIENT_LEFT"
#: its TCP connection ended without that;
CLIENT_LOST = "CLIENT_LOST"
#: or it sent what is no WebSocket frame.
CLIENT_BROKE_PROTOCOL = "CLIENT_BROKE_PROTOCOL"


@dataclass(slots=True)
class EdgeCounters:
    """What has happened since the edge started."""

    opened: int = 0
    closed: int = 0
    #: The same by cause: one of the above, or the catalogue's code with which the edge closed it.
    closed_by: Counter[str] = field(default_factory=Counter)
    frames_in: int = 0
    frames_refused: int = 0
    #: Frames handed to sockets: one message to a thousand listeners counts a thousand.
    deliveries: int = 0
    #: Frames that were no longer handed to a socket, as it was being closed or gone.
    dropped: int = 0
    batches_in: int = 0
    slow_consumers: int = 0
    #: Frames, and connects, that were refused, by the catalogue's code.
    refused_by: Counter[str] = field(default_factory=Counter)
    links: int = 0
    #: Deltas from the router.
    deltas_in: int = 0
    #: Frames with deltas, and the deltas in them, for each listener.
    delta_frames: int = 0
    deltas_delivered: int = 0

    def ended(self, cause: str) -> None:
        """An accepted connection has ended."""
        self.closed += 1
        self.closed_by[cause] += 1

    def took_back(self, frames: int) -> None:
        """So many frames that were counted as deliveries did not get to their socket."""
        self.deliveries -= frames
        self.dropped += frames

    def gave(self, frames: int, deltas: int, listeners: int) -> None:
        """So many listeners were given so many deltas in so many frames."""
        self.deliveries += frames * listeners
        self.delta_frames += frames * listeners
        self.deltas_delivered += deltas * listeners
