"""What bounds one edge, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass


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
    frames_in: int = 0
    frames_refused: int = 0
    #: Frames handed to sockets: one message to a thousand listeners counts a thousand.
    deliveries: int = 0
    batches_in: int = 0
    slow_consumers: int = 0
    links: int = 0
    #: Deltas from the router.
    deltas_in: int = 0
    #: Frames with deltas, and the deltas in them, for each listener.
    delta_frames: int = 0
    deltas_delivered: int = 0

    def gave(self, frames: int, deltas: int, listeners: int) -> None:
        """So many listeners were given so many deltas in so many frames."""
        self.deliveries += frames * listeners
        self.delta_frames += frames * listeners
        self.deltas_delivered += deltas * listeners
