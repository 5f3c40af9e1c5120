"""The address of a connection's peer."""

from __future__ import annotations

import asyncio

from trunkline_runtime.loopback import plain_ip


def peer_ip(transport: asyncio.BaseTransport) -> str:
    """The peer's IP address; empty on a Unix socket."""
    peer = transport.get_extra_info("peername")
    return plain_ip(peer[0]) if isinstance(peer, tuple) else ""
