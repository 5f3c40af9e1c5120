"""Texts and transcripts of streamed replies."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import frame_pb2, message_pb2
from websockets.frames import Frame, Opcode

from bench.loadgen.chat_frames import JSON, PROTO
from bench.loadgen.reply_frames import chunk
from bench.loadgen.reply_text import DELTA_BYTES, SLOTS, ReplyScript, delta_text, digest, due_us, marks_of
from bench.loadgen.transcript import MAX_BUFFERED_BYTES, Transcript

DELTAS = [delta_text(1000 * index, 7, index) for index in range(6)]
TEXT = "".join(DELTAS)
ENCODINGS = (JSON, PROTO, "delta", "whole")
NOW_NS = 5_000


def framed(payload: bytes) -> bytes:
    return Frame(Opcode.BINARY, payload).serialize(mask=False)


def opening(encoding: str, text: str = "") -> bytes:
    """Opening frame; a baseline has none."""
    if encoding == JSON:
        frame = f'{{"type":"message","id":"m","parts":[{{"type":"text","text":"{text}"}}],"state":"open"}}'
        return framed(frame.encode())
    if encoding == PROTO:
        part = message_pb2.Part(text=message_pb2.TextPart(text=text))
        message = message_pb2.Message(id="m", parts=[part], state=message_pb2.MESSAGE_STATE_OPEN)
        return framed(frame_pb2.ServerFrame(message=message).SerializeToString())
    return b""


def added(encoding: str, index: int, named: bool = False) -> bytes:
    """Delta; with message id and index if `named`."""
    if encoding == JSON:
        names = f'"message_id":"m","index":{index},' if named else ""
        return framed(f'{{"type":"delta",{names}"text":"{DELTAS[index]}"}}'.encode())
    if encoding == PROTO:
        delta = frame_pb2.DeltaFrame(text=DELTAS[index])
        if named:
            delta.message_id, delta.index = "m", index
        return framed(frame_pb2.ServerFrame(delta=delta).SerializeToString())
    text = "".join(DELTAS[: index + 1]) if encoding == "whole" else DELTAS[index]
    return framed(chunk(text).encode())


def ending(encoding: str) -> bytes:
    if encoding == JSON:
        return framed(b'{"type":"change","message_id":"m","kind":"ended","state":"complete"}')
    if encoding == PROTO:
        change = message_pb2.Change(
            message_id="m",
            kind=message_pb2.CHANGE_KIND_ENDED,
            state=message_pb2.MESSAGE_STATE_COMPLETE,
        )
        return framed(frame_pb2.ServerFrame(change=change).SerializeToString())
    return framed(chunk("", is_final=True).encode())


def parsed(encoding: str, *frames: bytes) -> Transcript:
    transcript = Transcript(encoding)
    for frame in frames:
        transcript.take(memoryview(frame), NOW_NS)
    transcript.parse()
    return transcript


def test_a_delta_has_twenty_bytes_and_contains_its_send_time() -> None:
    """For any numbers."""
    assert {len(text) for text in (*DELTAS, delta_text(999_999_999, 9999, 99_999))} == {DELTA_BYTES}
    assert list(marks_of(TEXT)) == [(1000 * index, index) for index in range(6)]
    with pytest.raises(ValueError, match="invalid literal"):
        list(marks_of("hello, and how are you?"))


def test_each_reply_sends_once_in_each_interval() -> None:
    """Replies are spread over the slots; a delta is due at the tick of its reply's slot."""
    script = ReplyScript(23)
    ticks = range(3 * SLOTS)
    for tick in ticks:
        for reply in script.due_replies(tick):
            index, _ = script.next_delta(reply, 0)
            assert due_us(reply, index) == tick * 2000
    assert script.counts() == [3] * 23
    assert max(len(script.due_replies(tick)) for tick in ticks) == 3
    assert script.digests()[5] == digest(script.text(5))


@given(encoding=st.sampled_from(ENCODINGS), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_a_transcript_does_not_depend_on_chunks(encoding: str, cuts: list[int]) -> None:
    """A delta is received when its frame is complete, even if the transcript is parsed in between."""
    frames = [opening(encoding), *(added(encoding, index) for index in range(6)), ending(encoding)]
    sent = b"".join(frames)
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    transcript = Transcript(encoding)
    for start, end in itertools.pairwise(edges):
        transcript.take(memoryview(sent)[start:end], end)
        if end % 2:
            transcript.parse()
    transcript.parse()
    assert transcript.text == TEXT
    assert list(transcript.indexes) == list(range(6))
    ends = list(itertools.accumulate(map(len, frames)))[1:7]
    assert list(transcript.read_ns) == [next(edge for edge in edges if edge >= end) for end in ends]
    assert transcript.bytes_by_kind.total() == len(sent)
    assert transcript.frames["delta"] == 6
    assert transcript.frames["end"] == 1
    assert not transcript.faults


@pytest.mark.parametrize("encoding", ENCODINGS[:3])
@pytest.mark.parametrize("order", [(0, 2), (0, 1, 1, 2), (0, 2, 1), ()])
def test_lost_repeated_or_reordered_deltas_change_the_digest(encoding: str, order: tuple[int, ...]) -> None:
    """Only the exact sequence has the digest of the sent text."""
    frames = [added(encoding, index) for index in order]
    assert digest(parsed(encoding, opening(encoding), *frames).text) != digest("".join(DELTAS[:3]))


@pytest.mark.parametrize("encoding", [JSON, PROTO])
def test_an_open_message_replaces_the_text_so_far(encoding: str) -> None:
    """As after a reconnect; the frame is counted, and repeated text adds no deltas."""
    frames = [opening(encoding), added(encoding, 0), opening(encoding, "".join(DELTAS[:2]))]
    transcript = parsed(encoding, *frames, added(encoding, 2), added(encoding, 3, named=True))
    assert transcript.text == "".join(DELTAS[:4])
    assert transcript.frames["open"] == 2
    assert list(transcript.indexes) == [0, 2, 3]
    assert not transcript.faults


@pytest.mark.parametrize("encoding", [JSON, PROTO])
def test_a_wrong_index_is_a_fault(encoding: str) -> None:
    """Even if the text is right."""
    assert parsed(encoding, opening(encoding), added(encoding, 1, named=True)).faults.total() == 1


def test_a_whole_text_that_changes_earlier_text_is_a_fault() -> None:
    """Each whole text must extend the one before."""
    other = framed(chunk(delta_text(1, 8, 0) + DELTAS[1]).encode())
    assert parsed("whole", added("whole", 0), other).faults.total() >= 1


def test_rejections_and_closes_are_faults() -> None:
    """With the server's frame."""
    rejection = framed(b'{"type":"closing","code":4000,"message":"too slow"}')
    close = Frame(Opcode.CLOSE, b"\x0f\xa0").serialize(mask=False)
    faults = parsed(JSON, rejection, close).faults
    assert sorted(faults) == ["closed by the server", '{"type":"closing","code":4000,"message":"too slow"}']


def test_large_transcripts_are_parsed_early() -> None:
    """Above a size, received frames are parsed at once."""
    transcript = Transcript("whole")
    text = ""
    for index in range(2 * MAX_BUFFERED_BYTES // 1000):
        text += delta_text(0, 0, index)
        transcript.take(memoryview(framed(chunk(text).encode())), NOW_NS)
    assert transcript.frames["delta"] > 0
    transcript.parse()
    assert transcript.text == text
