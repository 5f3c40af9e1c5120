"""Listening sockets of an edge."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest
from trunkline_edge.listener import listen
from trunkline_edge.transport.peer_address import peer_ip
from trunkline_runtime.listen_address import ListenAddress

from tests.support.patience import patient

ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


class Greeter(asyncio.Protocol):
    """Greets a client by its address."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(b"hello " + peer_ip(transport).encode())
        transport.close()


async def greeting(sock: socket.socket) -> bytes:
    """Return all that a connected socket receives until its end."""
    reader, writer = await asyncio.open_connection(sock=sock)
    async with asyncio.timeout(patient(10)):
        found = await reader.read()
    writer.close()
    await writer.wait_closed()
    return found


@ipv6
@pytest.mark.parametrize(("text", "clients"), [("[::1]:0", ["::1"]), ("[::]:0", ["::1", "127.0.0.1"])])
async def test_ipv6_addresses_listen(text: str, clients: list[str]) -> None:
    listener = await listen(ListenAddress.parse(text), Greeter)
    assert listener.address.port
    for host in clients:
        assert (
            await greeting(socket.create_connection((host, listener.address.port)))
            == f"hello {host}".encode()
        )
    listener.close()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


async def test_a_unix_socket_listens_for_its_user_and_group(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    address = ListenAddress.parse(f"unix:{path}")
    listener = await listen(address, Greeter)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert await greeting(connected(path)) == b"hello "
    with pytest.raises(OSError, match="another process listens on"):
        await listen(address, Greeter)
    assert await greeting(connected(path)) == b"hello "
    listener.close()
    assert not path.exists()


async def test_the_file_of_a_killed_process_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    address = ListenAddress.parse(f"unix:{path}")
    listener = await listen(address, Greeter)
    assert await greeting(connected(path)) == b"hello "
    listener.close()
    path.write_text("data")
    with pytest.raises(OSError, match="is no socket"):
        await listen(address, Greeter)
    assert path.read_text() == "data"
    os.unlink(path)
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="is no socket"):
        await listen(address, Greeter)
