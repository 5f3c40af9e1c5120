"""Accumulator, delta buffer and reply state: pure, without an event loop."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.v1.agent_service_pb2 import OpenReply, ReplyEnded, ReplyOpened, ReplyProgress
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    Delta,
    MediaPart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
)
from trunkline_client.accumulator import Accumulator, difference
from trunkline_client.delta_buffer import MAX_DELTA_CHARS, MAX_UNWRITTEN_DELTAS, DeltaBuffer
from trunkline_client.errors import Fenced
from trunkline_client.reply_state import ReplyPhase, ReplyState


def call(call_id: str, arguments: str, name: str = "") -> Delta:
    """A piece of a tool call."""
    return Delta(part=Part(tool_call=ToolCallPart(call_id=call_id, name=name, arguments=arguments)))


def grown(*deltas: Delta) -> list[Part]:
    """The parts that these deltas make of an empty message."""
    whole = Accumulator(Message())
    for each in deltas:
        whole.add(each)
    return list(whole.message.parts)


def text(content: str) -> Part:
    return Part(text=TextPart(text=content))


def test_text_joins_the_text_at_the_end_and_nothing_else() -> None:
    thought = Part(reasoning=ReasoningPart(text="hm, yes"))
    assert grown(
        Delta(reasoning="hm, "),
        Delta(reasoning="yes"),
        Delta(text="a"),
        Delta(text="b"),
        Delta(reasoning="!"),
    ) == [thought, text("ab"), Part(reasoning=ReasoningPart(text="!"))]


def test_a_part_is_added_at_the_end_and_text_joins_a_text_part() -> None:
    picture = Part(image=MediaPart(url="u"))
    assert grown(Delta(text="a"), Delta(part=text("b")), Delta(text="c"), Delta(part=picture)) == [
        text("a"),
        text("bc"),
        picture,
    ]


def test_a_tool_call_is_extended_by_its_id_only_at_the_end() -> None:
    found = grown(
        call("1", '{"a', "look"), call("1", '":1}'), call("2", "{}", "see"), Delta(text="x"), call("2", "!")
    )
    assert [(each.tool_call.call_id, each.tool_call.arguments, each.text.text) for each in found] == [
        ("1", '{"a":1}', ""),
        ("2", "{}", ""),
        ("", "", "x"),
        ("2", "!", ""),
    ]
    assert found[0].tool_call.name == "look"


def test_content_that_is_newer_than_this_client_adds_nothing() -> None:
    assert grown(Delta(index=3)) == []


deltas = st.one_of(
    st.text(max_size=3).map(lambda each: Delta(text=each)),
    st.text(max_size=3).map(lambda each: Delta(reasoning=each)),
    st.builds(call, st.sampled_from("12"), st.text(max_size=3)),
    st.text(max_size=3).map(lambda each: Delta(part=text(each))),
)


@given(st.lists(deltas, max_size=12), st.lists(deltas, max_size=12), st.booleans())
def test_the_difference_turns_the_earlier_state_into_the_later(
    before: list[Delta], after: list[Delta], look: bool
) -> None:
    whole = Accumulator(Message())
    for each in before:
        whole.add(each)
        assert not look or whole.message
    earlier = Message()
    earlier.CopyFrom(whole.message)
    for each in after:
        whole.add(each)
        assert not look or whole.message
    added = difference(earlier, whole.message)
    assert added is not None
    again = Accumulator(earlier)
    for each in added:
        again.add(each)
    assert again.message == whole.message


def test_a_state_that_is_no_continuation_has_no_difference() -> None:
    assert difference(Message(parts=[text("ab")]), Message(parts=[text("a")])) is None
    assert difference(Message(parts=[text("a"), text("b")]), Message(parts=[text("a")])) is None
    assert difference(Message(parts=[text("a"), text("b")]), Message(parts=[text("ax"), text("b")])) is None
    assert difference(Message(parts=[text("a")]), Message(parts=[Part(image=MediaPart(url="u"))])) is None


# The delta buffer.


def test_unwritten_deltas_grow_and_written_ones_do_not() -> None:
    out = DeltaBuffer()
    out.add_text("a")
    out.add_text("b")
    out.add_text("c", reasoning=True)
    assert [(each.index, each.text, each.reasoning) for each in out.take(100, 10)] == [
        (0, "ab", ""),
        (1, "", "c"),
    ]
    out.add_text("d", reasoning=True)
    out.add_text("")
    (delta,) = out.take(100, 10)
    assert (delta.index, delta.reasoning) == (2, "d")
    assert out.rewind_to(2)
    out.add_text("e", reasoning=True)
    assert [each.reasoning for each in out.take(100, 10)] == ["d", "e"]


def test_long_text_is_divided() -> None:
    out = DeltaBuffer()
    out.add_text("x" * (MAX_DELTA_CHARS + 1))
    assert [len(each.text) for each in out.take(1 << 20, 10)] == [MAX_DELTA_CHARS, 1]


def test_a_delta_buffer_is_bounded_in_number_and_bytes() -> None:
    out = DeltaBuffer()
    for _ in range(MAX_UNWRITTEN_DELTAS):
        assert not out.is_full
        out.add_part(text("x"))
    assert out.is_full
    assert len(out.take(1 << 20, 10)) == 10
    assert not out.is_full
    for _ in range(4):
        out.add_part(text("x" * MAX_DELTA_CHARS))
    assert out.is_full
    out.take(1 << 20, 1000)
    assert not out.is_full
    for _ in range(64):
        out.add_part(text("x" * MAX_DELTA_CHARS))
        out.take(1 << 20, 1000)
    assert out.is_full, "too much is not on disk"
    out.forget_before(out.next_index)
    assert not out.is_full


def test_forgotten_deltas_cannot_be_rewound_to() -> None:
    out = DeltaBuffer()
    out.begin(5)
    out.add_part(text("x"))
    out.take(100, 1)
    out.forget_before(6)
    assert not out.rewind_to(5)
    assert not out.rewind_to(7)
    assert out.rewind_to(6)


# The reply state, against a router that may lose what is not on disk.


class Log:
    """A reply and the router's side of it: deltas received, and deltas on disk."""

    def __init__(self) -> None:
        self.author = Message(id="r")
        self.reply = ReplyState(OpenReply(key="k"), lambda: self.author)
        self.whole: list[Delta] = []
        self.on_disk = 0
        self.state = MESSAGE_STATE_OPEN
        self.number = 0
        self.wire: list[Any] = []
        self.back: list[Any] = []
        self.written = 0

    def message(self) -> Message:
        found = Accumulator(Message(id="r", state=self.state, next_index=len(self.whole)))
        for each in self.whole:
            found.add(each)
        return found.message

    # Steps.

    def write(self) -> None:
        """The author writes a letter if there is room."""
        if self.reply.message is not None and not self.reply.buffer.is_full:
            letter = chr(ord("a") + self.written % 26)
            self.reply.buffer.add_text(letter)
            accumulated = Accumulator(self.author)
            accumulated.add(Delta(text=letter))
            self.author = accumulated.message
            self.written += 1

    def flush(self) -> None:
        """The writer writes a batch."""
        if self.reply.must_open:
            self.number += 1
            self.wire.append(self.reply.open_request(self.number))
            return
        written = self.reply.take_deltas(1 << 20, 3)
        if written:
            self.wire.append([Delta.FromString(each.SerializeToString()) for each in written])
        end = self.reply.take_end(self.number)
        if end is not None:
            self.wire.append(end)

    def take(self) -> None:
        """The router receives the next item."""
        if not self.wire:
            return
        match self.wire.pop(0):
            case OpenReply():
                self.back.append(ReplyOpened(message=self.message()))
            case list(deltas):
                for each in deltas:
                    if each.index == len(self.whole) and self.state == MESSAGE_STATE_OPEN:
                        self.whole.append(each)
                    assert each.index <= len(self.whole)
                self.back.append(ReplyProgress(next_index=len(self.whole), durable_index=self.on_disk))
            case end:
                assert end.next_index == len(self.whole)
                self.state, self.on_disk = end.state, len(self.whole)
                self.back.append(ReplyEnded(state=end.state))

    def commit(self) -> None:
        """Everything received is on disk."""
        self.on_disk = len(self.whole)
        self.back.append(ReplyProgress(next_index=len(self.whole), durable_index=self.on_disk))

    def hear(self) -> None:
        """The worker receives the next report."""
        if not self.back:
            return
        report = self.back.pop(0)
        if self.reply.phase is ReplyPhase.DETACHED:
            return
        match report:
            case ReplyOpened():
                self.reply.on_opened(report)
            case ReplyProgress():
                self.reply.on_progress(report)
            case _:
                self.reply.on_ended(report)

    def divide(self) -> None:
        """Another worker writes the same text during a break, divided differently."""
        if self.reply.phase is ReplyPhase.DETACHED and self.state == MESSAGE_STATE_OPEN:
            letters = "".join(each.text for each in self.whole)
            self.whole = [Delta(index=number, text=each) for number, each in enumerate(letters)]
            self.on_disk = len(self.whole)

    def break_off(self) -> None:
        """The stream breaks."""
        self.wire.clear()
        self.back.clear()
        self.reply.stream_lost()

    def crash(self) -> None:
        """The router dies and loses what is not on disk."""
        del self.whole[self.on_disk :]
        self.break_off()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["write", "write", "flush", "take", "hear", "commit", "break_off", "crash", "divide"]
        ),
        max_size=60,
    )
)
def test_a_reply_is_complete_and_in_order_whatever_breaks(steps: list[str]) -> None:
    log = Log()
    for step in steps:
        getattr(log, step)()
    log.reply.finish(MESSAGE_STATE_COMPLETE, None)
    for _ in range(200):
        if log.reply.is_over:
            break
        log.flush()
        log.take()
        log.hear()
    assert log.reply.failure is None
    assert log.reply.ended == MESSAGE_STATE_COMPLETE
    text_on_disk = "".join(each.text for each in log.whole)
    assert text_on_disk == "".join(chr(ord("a") + number % 26) for number in range(log.written))
    assert [each.index for each in log.whole] == list(range(len(log.whole)))


@pytest.mark.parametrize("other", ["other words", "abc and more"])
def test_a_reply_that_another_worker_extended_is_fenced(other: str) -> None:
    reply = ReplyState(OpenReply(key="k"), lambda: Message(id="r", parts=[text("abc")]))
    reply.open_request(1)
    reply.on_opened(ReplyOpened(message=Message(id="r", state=MESSAGE_STATE_OPEN)))
    reply.buffer.add_text("abc")
    reply.take_deltas(100, 1)
    reply.stream_lost()
    reply.open_request(1)
    there = Message(id="r", state=MESSAGE_STATE_OPEN, next_index=1, parts=[text(other)])
    reply.on_opened(ReplyOpened(message=there))
    assert isinstance(reply.failure, Fenced)
