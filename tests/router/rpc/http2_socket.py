"""A raw HTTP/2 connection, which sends nothing but what a test asks for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

from tests.support.patience import patient

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1


class Frame(NamedTuple):
    """A frame that the server has sent."""

    kind: int
    flags: int
    payload: bytes


class Http2Socket:
    """Connection whose handshake is done when `connect` returns."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: str) -> Http2Socket:
        host, _, port = address.rpartition(":")
        self = cls(*await asyncio.open_connection(host, int(port)))
        try:
            self._writer.write(PREFACE)
            self.send(SETTINGS)
            while (await self.read()).kind != SETTINGS:
                pass
            self.send(SETTINGS, ACK)
        except BaseException:
            await self.close()
            raise
        return self

    def send(self, kind: int, flags: int = 0, payload: bytes = b"") -> None:
        """Send a frame of the connection itself."""
        self._writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 0]) + payload)

    async def read(self) -> Frame:
        """Read a frame. Raises IncompleteReadError or ConnectionError at the end of the connection."""
        async with asyncio.timeout(patient(20)):
            head = await self._reader.readexactly(9)
            return Frame(head[3], head[4], await self._reader.readexactly(int.from_bytes(head[:3], "big")))

    async def ping(self) -> Frame:
        """Send a ping; return its answer, or the GOAWAY that comes instead."""
        self.send(PING, 0, b"12345678")
        while True:
            frame = await self.read()
            if frame.kind == GOAWAY or (frame.kind, frame.flags) == (PING, ACK):
                return frame

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
