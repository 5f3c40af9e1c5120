"""Comparison of the streams that many sockets receive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from bench.loadgen.shared_stream import Reader, SharedStream, StreamMismatchError

PING = Frame(Opcode.PING, b"are you there").serialize(mask=False)


def framed(payload: bytes) -> bytes:
    return Frame(Opcode.BINARY, payload).serialize(mask=False)


def feed(reader: Reader, stream: bytes, cuts: list[int]) -> None:
    """Feed a stream in pieces."""
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        reader.feed(memoryview(stream)[start:end])


pieces = st.lists(st.integers(0, 10_000), max_size=8)


@given(
    payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=6),
    listeners=st.lists(st.tuples(pieces, st.sets(st.integers(0, 6))), min_size=1, max_size=5),
)
def test_equal_streams_match_regardless_of_chunks_and_pings(
    payloads: list[bytes], listeners: list[tuple[list[int], set[int]]]
) -> None:
    """Chunks and pings differ between sockets; the frames do not and are stored once."""
    stream = SharedStream()
    for cuts, pinged_before in listeners:
        reader = Reader(stream)
        sent = b"".join(
            (PING if number in pinged_before else b"") + framed(payload)
            for number, payload in enumerate(payloads)
        )
        feed(reader, sent, cuts)
        assert reader.offset == len(stream.data)
        pings = len(pinged_before & set(range(len(payloads))))
        assert reader.aside == [(Opcode.PING, b"are you there")] * pings
    assert stream.payloads() == payloads


def test_readers_take_turns_in_defining_the_stream() -> None:
    """The reader that is ahead defines the stream; the other may be ahead next."""
    stream, frames = SharedStream(), [framed(bytes([number]) * 200) for number in range(4)]
    ahead, behind = Reader(stream), Reader(stream)
    whole = b"".join(frames)
    ahead.feed(memoryview(whole)[:250])
    behind.feed(memoryview(whole)[:500])
    ahead.feed(memoryview(whole)[250:])
    behind.feed(memoryview(whole)[500:])
    assert stream.data == whole
    assert len(stream.payloads()) == 4


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(framed(b"two") + framed(b"one"), id="out of order"),
        pytest.param(framed(b"two"), id="lost"),
        pytest.param(framed(b"one") + framed(b"one"), id="twice"),
    ],
)
def test_a_differing_stream_is_detected(other: bytes) -> None:
    """Lost, repeated and reordered frames are a mismatch at their first byte."""
    stream = SharedStream()
    Reader(stream).feed(memoryview(framed(b"one") + framed(b"two")))
    with pytest.raises(StreamMismatchError):
        Reader(stream).feed(memoryview(other))


@given(before=st.integers(0, 3), cuts=pieces, leads=st.booleans())
def test_frames_for_one_socket_are_put_aside(before: int, cuts: list[int], leads: bool) -> None:
    """A frame for one listener is not part of the stream, even if it is first and arrives in pieces."""
    stream = SharedStream(lambda first_bytes: b"farewell" in first_bytes)
    frames = [framed(bytes([number]) * 100) for number in range(4)]
    if not leads:
        Reader(stream).feed(memoryview(b"".join(frames)))
    closed = Reader(stream)
    close = Frame(Opcode.CLOSE, b"\x0f\xa0").serialize(mask=False)
    feed(closed, b"".join(frames[:before]) + framed(b"farewell, you were too slow for us") + close, cuts)
    assert [opcode for opcode, _ in closed.aside] == [Opcode.BINARY, Opcode.CLOSE]
    assert closed.offset == sum(map(len, frames[:before]))
    Reader(stream).feed(memoryview(b"".join(frames)))
    assert len(stream.payloads()) == 4
