"""The edge's listening socket: TCP, or a Unix socket for a proxy on the same machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import NamedTuple

from trunkline_runtime.listen_address import ListenAddress

#: Connections that the kernel queues until accepted: every client may reconnect at once.
BACKLOG = 4096
#: A Unix socket is for the edge's user and group, of which the proxy must be a member.
SOCKET_MODE = 0o660


class Listener(NamedTuple):
    """A server, and the address that it listens on, with the port that the kernel chose for port 0."""

    server: asyncio.Server
    address: ListenAddress

    def close(self) -> None:
        """Accept no further connection, and remove the file of a Unix socket."""
        self.server.close()
        if self.address.path:
            with contextlib.suppress(OSError):
                os.unlink(self.address.path)


async def listen(address: ListenAddress, make_protocol: Callable[[], asyncio.Protocol]) -> Listener:
    """Listen on an address. Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.path:
        unix = await loop.create_unix_server(make_protocol, sock=_bind_unix(address.path), backlog=BACKLOG)
        return Listener(unix, address)
    if address.is_public and address.host != "0.0.0.0" and socket.has_dualstack_ipv6():
        # IPv4 clients, too, as with gRPC's listeners.
        both = socket.create_server(
            ("::", address.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
        server = await loop.create_server(make_protocol, sock=both, backlog=BACKLOG)
    else:
        # Without IPv6, all interfaces are those of IPv4.
        host = address.host or "0.0.0.0"
        server = await loop.create_server(make_protocol, host, address.port, backlog=BACKLOG)
    return Listener(server, address._replace(port=server.sockets[0].getsockname()[1]))


def _bind_unix(path: str) -> socket.socket:
    """Bind a Unix socket; a file that an edge left behind when it was killed is replaced. Raises OSError."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX)
    # Before it listens nobody can connect, whatever the file's mode.
    try:
        sock.bind(path)
        os.chmod(path, SOCKET_MODE)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Remove the file of a socket on which nobody listens. Raises OSError if it is anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        # A full queue of connections must not hold the start up.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(f"another process listens on {path}")
