"""Connection statistics for the health page."""

from __future__ import annotations

from typing import Any

from trunkline.v1 import catalogue

from trunkline_edge.core.counters import CLIENT_LEFT
from trunkline_edge.core.edge import EdgeCore

#: Causes of ends that client, backend or operator asked for; all others are failures.
_REQUESTED = {CLIENT_LEFT} | {
    entry.code
    for entry in (
        catalogue.DISCONNECTED,
        catalogue.RESTARTING,
        catalogue.RECONNECT_REQUESTED,
        catalogue.CLOSED_BY_BACKEND,
    )
}


def connection_stats(core: EdgeCore) -> dict[str, Any]:
    """Return the statistics; all but `connections` are totals since the edge started.

    `success_rate` is the share of frames that were passed to a socket, 1 if there were none; frames that a
    socket then lost are sent again when its client resumes. `disconnect_rate` is the share of opened
    connections that ended without a request to.
    """
    counts = core.counts
    failed = sum(number for cause, number in counts.closed_by.items() if cause not in _REQUESTED)
    return {
        "connections": len(core.connections),
        "connections_opened": counts.opened,
        "connections_closed": counts.closed,
        "closed_by": dict(sorted(counts.closed_by.items())),
        "frames_received": counts.frames_in,
        "frames_refused": counts.frames_refused,
        "deliveries": counts.deliveries,
        "dropped": counts.dropped,
        "success_rate": _share(counts.deliveries, counts.deliveries + counts.dropped, 1.0),
        "disconnect_rate": _share(failed, counts.opened, 0.0),
    }


def _share(part: int, whole: int, of_nothing: float) -> float:
    return round(part / whole, 6) if whole else of_nothing
