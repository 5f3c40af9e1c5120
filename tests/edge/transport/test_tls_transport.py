"""TLS transport: data arrives whole and in order, however its bytes are cut into pieces."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import certs
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline_edge.transport.tls_transport import TlsTransport
from trunkline_runtime.certificates import server_context

from tests.support.certificates import Certificates
from tests.support.patience import patient


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server and of a client that trusts it."""
    with TemporaryDirectory() as folder:
        ours = Certificates(Path(folder))
        return server_context(ours.edge, certs.key_of(ours.edge)), ours.trusting


class Wire:
    """Transport of a TCP connection whose client is in the test."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.ended = False
        self.closed = False
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.ended
        assert not self.closed
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Heard(asyncio.Protocol):
    """Records its events."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.data = b""
        self.eofs = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self.transport is None
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.eofs
        self.data += data

    def eof_received(self) -> bool:
        self.eofs += 1
        return True


class Both:
    """A client and the edge's end, and between them bytes in pieces of these sizes, cycled."""

    def __init__(self, sizes: list[int]) -> None:
        server, client = contexts()
        self.wire, self.heard = Wire(), Heard()
        self.tls = TlsTransport(server, self.heard, 10.0)
        self.tls.connection_made(cast("asyncio.Transport", self.wire))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = client.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._sizes = self._endless(sizes)
        self.data = b""
        self.ended = False
        self._shake()

    @staticmethod
    def _endless(sizes: list[int]) -> Iterator[int]:
        while True:
            yield from sizes

    def _shake(self) -> None:
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._client.do_handshake()
                done = True
            self.carry()

    def carry(self) -> None:
        """Transfer everything that either has written to the other."""
        while self._out.pending or self.wire.sent:
            while self._out.pending:
                self.tls.data_received(self._out.read(next(self._sizes)))
            size = next(self._sizes)
            self._in.write(self.wire.sent[:size])
            del self.wire.sent[:size]
            self._read()

    def _read(self) -> None:
        if self._client.version() is None:
            return
        try:
            while data := self._client.read(1 << 16):
                self.data += data
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True

    def say(self, data: bytes) -> None:
        self._client.write(data)

    def end(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._client.unwrap()


async def conversation(
    sizes: list[int], from_client: list[bytes], from_edge: list[bytes], by_eof: bool
) -> Any:
    both = Both(sizes)
    transport = both.heard.transport
    assert transport is both.tls
    for up, down in zip(from_client, from_edge, strict=True):
        both.say(up)
        transport.write(down)
        both.carry()
    assert both.heard.data == b"".join(from_client)
    assert both.data == b"".join(from_edge)
    transport.write(b"the last")
    if by_eof:
        transport.write_eof()
    else:
        transport.close()
    both.carry()
    assert both.data.endswith(b"the last")
    assert both.ended
    assert (both.wire.ended, both.wire.closed) == (by_eof, not by_eof)
    transport.write(b"nobody is there")
    assert not both.wire.sent
    both.end()
    both.carry()
    assert both.heard.eofs == (1 if by_eof else 0)
    both.tls.connection_lost(None)


def text(size: int) -> bytes:
    """Return bytes in which any gap shows."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]


#: Texts of up to five records.
three = st.tuples(*[st.integers(1, 70_000)] * 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=5), three, three, st.booleans())
def test_what_is_said_is_heard_and_the_end_is_the_last(
    sizes: list[int], from_client: tuple[int, ...], from_edge: tuple[int, ...], by_eof: bool
) -> None:
    asyncio.run(
        conversation(sizes, [text(size) for size in from_client], [text(size) for size in from_edge], by_eof)
    )


async def test_many_records_of_a_byte_are_decrypted_in_slices() -> None:
    both = Both([1 << 20])
    for _ in range(5000):
        both.say(b"x")
    both.end()
    both.carry()
    # The rest waits for other callbacks of the loop, and nothing more is read.
    assert 0 < len(both.heard.data) < 2000
    assert both.wire.paused
    async with asyncio.timeout(patient(5)):
        while not both.heard.eofs:
            before = len(both.heard.data)
            await asyncio.sleep(0)
            assert len(both.heard.data) - before < 2000
    assert len(both.heard.data) == 5000
    both.tls.connection_lost(None)


async def test_a_protocol_that_pauses_between_slices_gets_the_rest_when_it_resumes() -> None:
    both = Both([1 << 20])
    for _ in range(5000):
        both.say(b"x")
    both.carry()
    both.tls.pause_reading()
    before = len(both.heard.data)
    await asyncio.sleep(0)
    assert len(both.heard.data) == before
    both.tls.resume_reading()
    async with asyncio.timeout(patient(5)):
        while len(both.heard.data) < 5000:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not both.wire.paused
    both.tls.connection_lost(None)
