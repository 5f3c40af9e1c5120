"""Open-loop schedules, and the due time in each chat text."""

import time

from trunkline.v1 import address_pb2, frame_pb2, message_pb2

from bench.loadgen.chat_frames import (
    JSON,
    PROTO,
    closing_reason,
    is_answer,
    is_closing,
    is_rejection,
    message_frame,
)
from bench.loadgen.chat_text import LENGTH, chat_text, mark_of
from bench.loadgen.open_loop import OpenLoop, due_items
from bench.loadgen.stream_checks import breaks, seq_of
from bench.loadgen.websocket_frames import next_frame

MS = 1_000_000


def test_a_schedule_yields_each_number_once_when_it_is_due() -> None:
    """Nothing is due early; missed numbers are yielded at once."""
    schedule = OpenLoop(rate=1000, seconds=0.01, start_ns=5 * MS)
    assert list(schedule.take(5 * MS, 100)) == [0]
    assert list(schedule.take(5 * MS + 999_000, 100)) == []
    assert schedule.wait_s(5 * MS + 999_000) == 1e-6
    assert list(schedule.take(9 * MS, 100)) == [1, 2, 3, 4]
    assert list(schedule.take(99 * MS, 3)) == [5, 6, 7]
    assert list(schedule.take(99 * MS, 100)) == [8, 9]
    assert list(schedule.take(999 * MS, 100)) == []


def test_due_times_do_not_depend_on_when_numbers_are_taken() -> None:
    """A late sender does not shift the time from which latency counts."""
    assert OpenLoop(rate=250, seconds=1, start_ns=7).due_ns(3) == 7 + 12 * MS


async def test_due_items_yields_all_numbers_when_they_are_due() -> None:
    """Each once, in order, none early."""
    schedule = OpenLoop(rate=500, seconds=0.02, start_ns=time.monotonic_ns())
    given: list[int] = []
    async for due in due_items(schedule, schedule.start_ns + 10**10, at_most=3):
        assert schedule.due_ns(due[-1]) <= time.monotonic_ns()
        assert len(due) <= 3
        given += due
    assert given == list(range(10))


async def test_due_items_yields_nothing_after_the_end() -> None:
    """Overdue numbers are dropped."""
    schedule = OpenLoop(rate=1000, seconds=1, start_ns=time.monotonic_ns() - 10**9)
    assert [due async for due in due_items(schedule, schedule.start_ns, at_most=3)] == []


def test_text_carries_its_mark_in_every_encoding() -> None:
    """Texts have a fixed length; their mark is found in raw text, JSON and protobuf frames."""
    assert len(chat_text(0, 0)) == len(chat_text(99_999_999, 10**18)) == LENGTH
    for subprotocol in (None, JSON, PROTO):
        assert mark_of(message_frame(42, 123_456_789, subprotocol)) == (123_456_789, 42)
    assert mark_of(b"no mark") is None


def test_an_encoded_message_is_a_frame_of_the_contract() -> None:
    """The protobuf form parses as a `message` frame; the JSON form has the same id."""
    frame = message_frame(7, 1, PROTO)
    parsed = frame_pb2.ClientFrame.FromString(frame[frame.index(b"\0\0\0\0") + 4 :])
    assert parsed.message.id == "7"
    assert parsed.message.parts[0].text.text == chat_text(7, 1)
    assert b'"type":"message","id":"7"' in message_frame(7, 1, JSON)
    header = next_frame(frame, 0)
    assert header


def test_replies_are_distinguished_from_acks_and_rejections() -> None:
    """Only messages of the agent are replies."""
    by_agent = message_pb2.Author(role=message_pb2.ROLE_AGENT)
    answer = frame_pb2.ServerFrame(message=message_pb2.Message(author=by_agent)).SerializeToString()
    ack = frame_pb2.ServerFrame(ack=frame_pb2.AckFrame(id="1")).SerializeToString()
    error = frame_pb2.ServerFrame(error=frame_pb2.ErrorFrame(code="OVERLOADED")).SerializeToString()
    assert [is_answer(frame, PROTO) for frame in (answer, ack, error)] == [True, False, False]
    assert [is_rejection(frame, PROTO) for frame in (answer, ack, error)] == [False, False, True]
    assert is_answer(b'{"type":"message","author":{"role":"agent"}}', JSON)
    assert is_rejection(b'{"type":"error","code":"OVERLOADED"}', JSON)


def test_closing_frames_are_recognised_by_their_first_bytes() -> None:
    """Their reason is readable; messages are not mistaken for them."""
    closing = frame_pb2.ServerFrame(closing=frame_pb2.ClosingFrame(code=4000, reason="SLOW_CONSUMER"))
    message = frame_pb2.ServerFrame(message=message_pb2.Message(id="closing"))
    in_json = b'{"type":"closing","code":4000,"reason":"SLOW_CONSUMER"}'
    assert is_closing(b"\x82\x20" + closing.SerializeToString()[:20], PROTO)
    assert not is_closing(b"\x82\x20" + message.SerializeToString(), PROTO)
    assert is_closing(b"\x81\x20" + in_json[:28], JSON)
    assert not is_closing(b'\x81\x20{"type":"message","id":"clos', JSON)
    assert closing_reason(closing.SerializeToString(), PROTO) == "SLOW_CONSUMER"
    assert closing_reason(in_json, JSON) == "SLOW_CONSUMER"


def test_seqs_that_are_not_in_a_row_are_counted() -> None:
    """A gap, a repetition and a step back count as one break each."""
    assert breaks([4, 5, 6]) == 0
    assert breaks([1, 3, 3, 2]) == 3
    position = address_pb2.Position(seq=9)
    frame = frame_pb2.ServerFrame(message=message_pb2.Message(position=position))
    assert seq_of(frame.SerializeToString(), PROTO) == 9
    assert seq_of(b'{"type":"message","position":{"epoch":"e","seq":9}}', JSON) == 9
    assert seq_of(b'{"type":"ack","position":{"epoch":"e","seq":9}}', JSON) == 0
