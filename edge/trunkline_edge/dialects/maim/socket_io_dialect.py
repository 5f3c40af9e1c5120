"""maim_message 0.7, see docs/dialects/maim_socket_io.md: two families of `/ws`, by Socket.IO."""

from __future__ import annotations

from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.maim import api
from trunkline_edge.dialects.socket_io import SocketIo


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    inner = api.make(clock)

    def connect(request: ConnectRequest) -> ConnectPlan:
        plan = inner.connect(request)
        plan.codec = SocketIo(plan.codec)
        return plan

    return Dialect(
        name="maim.socket_io",
        needs_tenants=True,
        connect=connect,
        rejection_codec=SocketIo(inner.rejection_codec),
        engine_io_paths=inner.websocket_paths,
    )
