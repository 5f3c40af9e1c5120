"""When to say something, and when to take the other end for dead. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class HeartbeatAction(Enum):
    """What a heartbeat asks for."""

    WAIT = 0
    PING = 1
    DEAD = 2


class HeartbeatStep(NamedTuple):
    """What to do now, and when to ask again."""

    pulse: HeartbeatAction
    wait_s: float


def next_heartbeat(now: float, heard_at: float, pinged_at: float, interval_s: float) -> HeartbeatStep:
    """What to do about a connection on which something was last heard, and a ping sent, at these times.

    One ping per interval, so that whatever has been silent for two was asked at least one interval ago.
    """
    dead_in_s = heard_at + 2 * interval_s - now
    if dead_in_s <= 0:
        return HeartbeatStep(HeartbeatAction.DEAD, 0.0)
    ping_in_s = pinged_at + interval_s - now
    if ping_in_s > 0:
        return HeartbeatStep(HeartbeatAction.WAIT, min(ping_in_s, dead_in_s))
    return HeartbeatStep(HeartbeatAction.PING, min(interval_s, dead_in_s))
