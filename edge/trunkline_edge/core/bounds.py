"""What bounds one edge, and what it counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Causes for which a connection ends that the edge has not closed itself. The client said goodbye;
CLIENT_LEFT = "CLIENT_LEFT"
#: its TCP connection ended without that;
CLIENT_LOST = "CLIENT_LOST"
#: or it sent what is no WebSocket frame.
CLIENT_BROKE_PROTOCOL = "CLIENT_BROKE_PROTOCOL"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one edge."""

    frame_bytes: int = 1 << 20
    #: Requests of one connection that may wait for their answer, and their bytes.
    unanswered: int = 64
    unanswered_bytes: int = 256 * 1024
    #: Waiting for the router, beyond which clients that send are held back.
    uplink_bytes: int = 16 << 20
    #: Batches that the router may have under way.
    link_window: int = 4
    heartbeat_s: int = 25


@dataclass(slots=True)
class Counts:
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
