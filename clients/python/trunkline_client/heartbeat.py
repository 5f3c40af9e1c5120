"""Decisions of a heartbeat: when to ping, and when to take the other end for dead. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class HeartbeatAction(Enum):
    """Action that a heartbeat asks for."""

    WAIT = 0
    PING = 1
    DROP = 2


class HeartbeatStep(NamedTuple):
    """An action to take now, and when to decide again."""

    action: HeartbeatAction
    wait_s: float


def next_heartbeat(now: float, heard_at: float, pinged_at: float, interval_s: float) -> HeartbeatStep:
    """Decides for a connection that last received something, and last sent a ping, at these times.

    One ping per interval, so a connection that was silent for two was pinged at least one interval ago.
    """
    dead_in_s = heard_at + 2 * interval_s - now
    if dead_in_s <= 0:
        return HeartbeatStep(HeartbeatAction.DROP, 0.0)
    ping_in_s = pinged_at + interval_s - now
    if ping_in_s > 0:
        return HeartbeatStep(HeartbeatAction.WAIT, min(ping_in_s, dead_in_s))
    return HeartbeatStep(HeartbeatAction.PING, min(interval_s, dead_in_s))
