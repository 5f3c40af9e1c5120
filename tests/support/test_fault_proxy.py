"""The fault proxy forwards, and injects each of its faults into open and new connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.polling import wait_until
from tests.support.fault_proxy import FaultProxy
from tests.support.patience import patient

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EchoServer:
    """Sends back each line."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.port = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in reader:
                self.lines.append(line)
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    echo = EchoServer()
    async with await asyncio.start_server(echo.take, "127.0.0.1", 0) as listener:
        echo.port = listener.sockets[0].getsockname()[1]
        yield echo


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(f"127.0.0.1:{server.port}") as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    host, port = proxy.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def echoed(streams: Streams, line: bytes, timeout_s: float = patient(5)) -> bytes:
    """Send a line; return the next line that arrives."""
    streams[1].write(line)
    async with asyncio.timeout(timeout_s):
        return await streams[0].readline()


async def test_bytes_pass_in_both_directions_until_both_ends_are_closed(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        big = b"x" * 50_000 + b"\n"
        assert await echoed(streams, big) == big
        assert proxy.connections == 1
        streams[1].write_eof()
        assert await streams[0].read() == b""
    await wait_until(lambda: proxy.connections == 0, "the connection is gone")
    assert proxy.accepted == 1


async def test_cut_resets_open_connections_and_accepts_others(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await echoed(streams, b"1\n")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await streams[0].readline()
    async with connected(proxy) as streams:
        assert await echoed(streams, b"2\n") == b"2\n"


async def test_refuse_cuts_and_refuses_until_accept(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await echoed(streams, b"1\n")
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await streams[0].readline()
    with pytest.raises(ConnectionRefusedError):
        async with connected(proxy):
            pass
    proxy.accept()
    async with connected(proxy) as streams:
        assert await echoed(streams, b"2\n") == b"2\n"


async def test_a_stall_of_answers_lets_requests_through(proxy: FaultProxy, server: EchoServer) -> None:
    async with connected(proxy) as streams:
        proxy.stall("to_client")
        with pytest.raises(TimeoutError):
            await echoed(streams, b"1\n", 0.05)
        await wait_until(lambda: server.lines == [b"1\n"], "the request arrives")
        proxy.resume()
        assert await echoed(streams, b"2\n") == b"1\n"


async def test_a_stall_of_requests_keeps_them_from_the_server(proxy: FaultProxy, server: EchoServer) -> None:
    proxy.stall("to_server")
    async with connected(proxy) as streams:
        with pytest.raises(TimeoutError):
            await echoed(streams, b"1\n", 0.05)
        assert server.lines == []
        proxy.resume()
        assert await echoed(streams, b"2\n") == b"1\n"


async def test_a_delay_holds_each_answer_back_without_slowing_their_flow(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await echoed(streams, b"0\n")
        proxy.delay(0.1, "to_client")
        began = time.monotonic()
        for number in range(20):
            streams[1].write(b"%d\n" % number)
            await asyncio.sleep(0)
        lines = [await streams[0].readline() for _ in range(20)]
        assert lines == [b"%d\n" % number for number in range(20)]
        assert 0.1 <= time.monotonic() - began < patient(0.5)


@pytest.mark.parametrize("forward", [True, False])
async def test_a_connection_is_cut_at_a_request(proxy: FaultProxy, server: EchoServer, forward: bool) -> None:
    proxy.cut_at_request(b"commit", forward=forward)
    async with connected(proxy) as streams, connected(proxy) as other:
        assert await echoed(streams, b"begin\n") == b"begin\n"
        assert proxy.awaits_request
        with pytest.raises(ConnectionResetError):
            await echoed(streams, b"commit\n")
        assert not proxy.awaits_request
        assert (b"commit\n" in server.lines) == forward
        assert await echoed(other, b"commit\n") == b"commit\n"


async def test_a_server_that_is_down_resets_connections() -> None:
    with FaultProxy("127.0.0.1:1") as broken, pytest.raises(ConnectionResetError):
        async with connected(broken) as streams:
            await streams[0].readline()
