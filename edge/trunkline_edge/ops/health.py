"""How the edge's connections fare, in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trunkline.v1 import catalogue

from trunkline_edge.core.counters import CLIENT_LEFT

if TYPE_CHECKING:
    from trunkline_edge.runtime import EdgeRuntime

#: Causes of ends that somebody wished; all others are failures.
_WISHED = {CLIENT_LEFT} | {
    entry.code
    for entry in (
        catalogue.DISCONNECTED,
        catalogue.RESTARTING,
        catalogue.RECONNECT_REQUESTED,
        catalogue.CLOSED_BY_BACKEND,
    )
}


def figures(shell: EdgeRuntime) -> dict[str, Any]:
    """For the health page. All but `connections` are counted since the edge started.

    `success_rate` is the share of frames that were handed to a socket, 1 where there were none; what a
    socket then did not take is sent again when its client resumes. `disconnect_rate` is the share of the
    connections opened that ended without anybody's wish.
    """
    counts = shell.core.counts
    failed = sum(number for cause, number in counts.closed_by.items() if cause not in _WISHED)
    return {
        "connections": len(shell.core.connections),
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
