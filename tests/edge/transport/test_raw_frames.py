"""WebSocket frames, byte by byte (RFC 6455, sections 5 to 8), in every dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from struct import pack

import pytest
from trunkline.v1.tenant_pb2 import TenantLimits
from websockets.frames import Frame, Opcode

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    QUERY,
    Edge,
    ScriptedLink,
    answer,
    edge_and_link,
    running_edge,
    running_router,
    upgrade,
)
from tests.support.declared_tenants import policy

TEXT, BINARY, CONT, PING, PONG, CLOSE = (
    Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.CLOSE,
)  # fmt: skip
#: "κόσμε" is valid; a byte of it alone is not, nor are surrogates, overlong forms and values past the last.
GREEK = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
NOT_UTF8 = [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", GREEK[:-1], b"\x80"]
TARGETS = {"native": f"/v1/connect?{QUERY}", "proto": f"/v1/connect?{QUERY}", "maim": "/ws/t/echo/qq"}


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    """Return a masked frame."""
    return Frame(opcode, data, fin).serialize(mask=True)


def close(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame that may be invalid."""
    return frame(CLOSE, pack(">H", code) + reason)


def closed_with(received: bytes) -> int:
    """Return the code of the close frame with which everything that the edge has sent ends."""
    end = received.rindex(b"\x88")
    assert len(received) == end + 2 + received[end + 1]
    return int.from_bytes(received[end + 2 : end + 4], "big")


async def a_socket(
    edge: Edge, link: ScriptedLink, dialect: str = "native", topic: int = 1
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, and read the response to the handshake."""
    reader, writer = await edge.raw()
    extra = "Sec-WebSocket-Protocol: trunkline.v1.proto\r\n" if dialect == "proto" else ""
    writer.write(upgrade(extra=extra).replace(TARGETS["native"].encode(), TARGETS[dialect].encode()))
    await link.accept(topic)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    return reader, writer


@asynccontextmanager
async def limited_edge(messages_per_s: float) -> AsyncIterator[tuple[Edge, ScriptedLink]]:
    """Run an edge on which each connection of tenant `t` may send so many messages a second."""
    limited = policy("t")
    limited.settings.limits.MergeFrom(TenantLimits(connection_messages_per_s=messages_per_s))
    async with running_router() as router:
        router.policies = [limited]
        async with running_edge(router.address) as edge:
            yield edge, await router.link()


CASES = {
    "64-bit length with its top bit set": (b"\x81\xff\x80" + bytes(11), 1002),
    "first reserved bit": (b"\xc1\x80" + bytes(4), 1002),
    "last reserved bit": (b"\x91\x80" + bytes(4), 1002),
    "reserved data opcode": (b"\x83\x80" + bytes(4), 1002),
    "reserved control opcode": (b"\x8b\x80" + bytes(4), 1002),
    "unmasked": (b"\x81\x02hi", 1002),
    "unmasked ping": (b"\x89\x00", 1002),
    "long ping": (b"\x89\xfe\x00\x7e" + bytes(4 + 126), 1002),
    "fragmented ping": (b"\x09\x80" + bytes(4), 1002),
    "continues nothing": (frame(CONT, b"x"), 1002),
    "text within fragments": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    "binary within fragments": (frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"), 1002),
    "close": (close(1000), 1000),
    "close with a reason": (close(4999, GREEK), 4999),
    "close within fragments": (frame(TEXT, b"{", fin=False) + close(1001), 1001),
    "close behind a ping": (frame(PING, b"x" * 125) + close(3000), 3000),
    "close with one byte": (frame(CLOSE, b"\x03"), 1002),
    "close with text that is not UTF-8": (close(1000, b"\xff"), 1007),
    "close that is too long": (b"\x88\xfe\x00\x7e" + bytes(4 + 126), 1002),
    **{f"close {code}": (close(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)},
    **{f"text {data!r}": (frame(TEXT, data), 1007) for data in NOT_UTF8},
    "text in fragments, first invalid": (frame(TEXT, b"{\xff", fin=False), 1007),
    "text in fragments, next invalid": (frame(TEXT, b"{", fin=False) + frame(CONT, b"\xff", fin=False), 1007),
    "text in fragments, cut short": (frame(TEXT, GREEK[:3], fin=False) + frame(CONT), 1007),
    "text in fragments over the limit": (frame(TEXT, b"x" * 1024, fin=False) + frame(CONT, b"x"), 1009),
    "binary over the limit": (frame(BINARY, bytes(1025)), 1009),
}


FLOODS = {
    "pings": frame(PING),
    "pings with content": frame(PING, b"x" * 125),
    "pongs": frame(PONG),
    "empty fragments": frame(CONT, fin=False),
    "fragments of a byte": frame(CONT, b" ", fin=False),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "by byte"])
async def test_frames_are_closed_with_the_code_of_the_rfc(at_once: bool) -> None:
    async with edge_and_link(frame_bytes=1024) as (edge, link):
        for number, (case, (data, code)) in enumerate(CASES.items()):
            reader, writer = await a_socket(edge, link, topic=0 if number else 1)
            for piece in [data] if at_once else [data[at : at + 1] for at in range(len(data))]:
                writer.write(piece)
                await asyncio.sleep(0)
            assert closed_with(await answer(reader)) == code, case
            await link.next("closed")
            assert not edge.runtime.core.connections, case
            writer.close()


@pytest.mark.parametrize("fragmented", [False, True], ids=["whole", "fragments"])
@pytest.mark.parametrize("dialect", TARGETS)
async def test_text_that_is_not_utf8_is_closed_with_1007(dialect: str, fragmented: bool) -> None:
    data = frame(TEXT, b'"a\xff"')
    if fragmented:
        data = frame(TEXT, b'"a', fin=False) + frame(PING) + frame(CONT, b'\xff"')
    async with edge_and_link() as (edge, link):
        reader, writer = await a_socket(edge, link, dialect)
        writer.write(data)
        assert closed_with(await answer(reader)) == 1007
        writer.close()


async def test_text_that_is_cut_within_a_character_is_read() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await a_socket(edge, link)
        text = b'{"type":"ping","id":"' + GREEK + b'"}'
        pieces = [text[at : at + 1] for at in range(len(text))]
        writer.write(frame(TEXT, b"", fin=False))
        writer.writelines(frame(CONT, piece, fin=False) for piece in pieces)
        writer.write(frame(CONT))
        await asyncio.wait_for(reader.readuntil(b'{"type":"pong","id":"' + GREEK), PATIENCE_S)
        writer.close()


async def test_nothing_is_answered_before_the_handshake() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await edge.raw()
        writer.write(upgrade() + frame(PING, b"early") * 1000 + frame(TEXT, b'{"type":"ping","id":"p1"}'))
        opened = await link.next("opened")
        assert reader._buffer == b""  # type: ignore[attr-defined]
        await link.accept(opened=opened)
        received = await asyncio.wait_for(reader.readuntil(b'"p1"}'), PATIENCE_S)
        assert received.startswith(b"HTTP/1.1 101 ")
        assert received.index(b'"connected"') < received.index(b"\x8a\x05early")
        assert received.count(b"\x8a\x05early") == 1000
        writer.close()


@pytest.mark.parametrize("flood", ["pings", "pongs", "empty fragments"])
async def test_a_flood_before_the_first_message_is_rejected(flood: str) -> None:
    async with edge_and_link() as (edge, _):
        reader, writer = await edge.raw()
        writer.write(upgrade(f"{QUERY}&auth=frame"))
        if "fragments" in flood:
            writer.write(frame(TEXT, fin=False))
        writer.write(FLOODS[flood] * 1000)
        received = await answer(reader)
        assert b"INVALID_ADDRESS" in received
        assert closed_with(received) == 4503
        assert received.count(b"\x8a") <= 100
        writer.close()


async def test_pings_behind_a_close_of_ours_are_not_answered() -> None:
    async with edge_and_link() as (edge, link):
        reader, writer = await a_socket(edge, link)
        writer.write(frame(TEXT, b'{"type":"disconnect"}') + frame(PING, b"late") * 100 + close(1000))
        received = await answer(reader)
        assert closed_with(received) == 1000
        assert b"late" not in received
        await link.next("closed")
        writer.close()


@pytest.mark.parametrize("flood", FLOODS)
async def test_frames_that_are_no_messages_are_charged_like_messages(flood: str) -> None:
    async with limited_edge(messages_per_s=50) as (edge, link):
        _, writer = await a_socket(edge, link)
        begin = frame(TEXT, b'{"type":', fin=False) if "fragments" in flood else b""
        writer.write(begin + FLOODS[flood] * 40_000)
        [(number, connection)] = edge.runtime.core.connections.items()
        transport = edge.transport(number)
        splitter = transport._frames._splitter
        await edge.until(lambda: edge.runtime.core.throttle.is_throttled(connection))
        # A burst of one second's worth was read, and the rest of the read is not parsed.
        assert len(splitter._data) - splitter._at > 100 * len(FLOODS[flood])
        assert not transport.transport.is_reading()
        writer.close()


async def test_a_ping_over_the_rate_limit_is_answered_later() -> None:
    async with limited_edge(messages_per_s=20) as (edge, link):
        reader, writer = await a_socket(edge, link)
        writer.write(b"".join(frame(PING, b"%03d" % number) for number in range(30)))
        received = await asyncio.wait_for(reader.readuntil(b"\x8a\x03029"), PATIENCE_S)
        assert received.count(b"\x8a\x03") == 30
        writer.close()


async def test_a_client_that_pings_and_reads_nothing_is_closed_as_slow() -> None:
    async with edge_and_link(outbox_bytes=1 << 16) as (edge, link):
        _, writer = await a_socket(edge, link)
        pings = frame(PING, b"x" * 125) * 2000
        while edge.runtime.core.connections:
            writer.write(pings)
            await asyncio.sleep(0)
            if writer.transport.get_write_buffer_size() > 1 << 20:
                await asyncio.sleep(0.01)
        await link.next("closed")
        assert edge.runtime.core.counts.slow_consumers == 1
        writer.close()


async def test_others_are_served_between_slices_of_one_read() -> None:
    async with edge_and_link() as (edge, link):
        _, flooder = await a_socket(edge, link)
        reader, neighbour = await a_socket(edge, link, topic=0)
        flooder.write(frame(PONG) * 30_000)
        [flooding, _] = [edge.transport(number) for number in edge.runtime.core.connections]
        await edge.until(lambda: flooding._is_unread)
        neighbour.write(frame(TEXT, b'{"type":"ping","id":"p1"}'))
        await asyncio.wait_for(reader.readuntil(b'"p1"}'), PATIENCE_S)
        # The flood is not over when the neighbour is answered.
        assert flooding._is_unread
        flooder.close()
        neighbour.close()
