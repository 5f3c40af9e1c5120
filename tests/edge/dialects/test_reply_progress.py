"""A stream only adds: what comes again of a reply is skipped, and what contradicts it breaks the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from trunkline_edge.dialects.reply_progress import Addition, ReplyConflict, ReplyProgress


def text(words: str) -> Part:
    return Part(text=TextPart(text=words))


def reasoning(words: str) -> Part:
    return Part(reasoning=ReasoningPart(text=words))


def call(arguments: str, call_id: str = "c") -> Part:
    return Part(tool_call=ToolCallPart(call_id=call_id, name="look", arguments=arguments))


def result(words: str) -> Part:
    return Part(tool_result=ToolResultPart(call_id="c", result=words))


class Written:
    """The parts of a reply as a reader of the stream has them."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str]] = []
        self.progress = ReplyProgress(self.add)

    def add(self, addition: Addition) -> None:
        if addition.is_new:
            self.parts.append((addition.kind, ""))
        else:
            kind, before = self.parts[-1]
            assert kind == addition.kind
            self.parts[-1] = kind, before + addition.text


def test_snapshot_and_deltas_are_parts_in_order() -> None:
    written = Written()
    written.progress.snapshot(Message(parts=[reasoning("hm"), text("one ")]))
    for delta in (
        DeltaFrame(text="two"),
        DeltaFrame(reasoning="so"),
        DeltaFrame(part=call('{"a"')),
        DeltaFrame(part=call(":1}")),
        DeltaFrame(part=call("{}", "d")),
        DeltaFrame(part=result("3")),
        DeltaFrame(text="three"),
    ):
        written.progress.delta(delta)
    assert written.parts == [
        ("reasoning", "hm"),
        ("text", "one two"),
        ("reasoning", "so"),
        ("tool_call", '{"a":1}'),
        ("tool_call", "{}"),
        ("tool_result", ""),
        ("text", "three"),
    ]


@pytest.mark.parametrize("known", ["", "one", "one two ", "one two three"])
def test_reply_that_comes_again_from_an_earlier_point_is_written_once(known: str) -> None:
    written = Written()
    for words in ("one ", "two ", "three"):
        written.progress.delta(DeltaFrame(text=words))
    written.progress.snapshot(Message(parts=[text(known)] if known else []))
    written.progress.delta(DeltaFrame(text="one two three four"[len(known) :]))
    assert written.parts == [("text", "one two three four")]


@pytest.mark.parametrize(
    "again",
    [[text("other words")], [reasoning("one ")], [text("one two"), text("three")]],
)
def test_reply_that_comes_again_otherwise_is_a_conflict(again: list[Part]) -> None:
    written = Written()
    written.progress.snapshot(Message(parts=[text("one two"), reasoning("hm")]))
    with pytest.raises(ReplyConflict):
        written.progress.snapshot(Message(parts=again))


PIECES = st.lists(st.tuples(st.sampled_from(["text", "reasoning"]), st.text(max_size=3)), max_size=12)


@given(PIECES, st.data())
def test_any_interruptions_leave_the_reply(pieces: list[tuple[str, str]], data: st.DataObject) -> None:
    whole = Written()
    for kind, words in pieces:
        whole.progress.delta(DeltaFrame(text=words) if kind == "text" else DeltaFrame(reasoning=words))
    written = Written()
    at = 0
    while at < len(pieces):
        kind, words = pieces[at]
        written.progress.delta(DeltaFrame(text=words) if kind == "text" else DeltaFrame(reasoning=words))
        at += 1
        if data.draw(st.booleans()):
            at = data.draw(st.integers(max(0, at - 3), at))
            parts: list[Part] = []
            for kind, words in pieces[:at]:
                if parts and parts[-1].WhichOneof("content") == kind:
                    getattr(parts[-1], kind).text += words
                else:
                    parts.append(text(words) if kind == "text" else reasoning(words))
            written.progress.snapshot(Message(parts=parts))
            if data.draw(st.integers(0, 5)) == 0:
                break
    for kind, words in pieces[at:]:
        written.progress.delta(DeltaFrame(text=words) if kind == "text" else DeltaFrame(reasoning=words))
    assert written.parts == whole.parts
