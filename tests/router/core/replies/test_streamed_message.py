"""One open message: what additions make of it, what of that is on disk, and who may write."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.catalogue import Refused
from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import Delta, Message, Part
from trunkline_router.core.replies import streamed_message
from trunkline_router.core.replies.message_parts import PartsBuilder
from trunkline_router.core.replies.streamed_message import Ended, StreamedMessage
from trunkline_router.core.values.log_records import Producer
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.client import grow

ALICE: TopicKey = ("t", "a", "w", PERSON, "alice")


def opened(**more: Any) -> StreamedMessage:
    """A new message."""
    message = Message(id="e1-1", state=OPEN, **more)
    message.position.seq = 1
    return StreamedMessage(ALICE, message, Producer("one", 1), 0.0)


def delta(index: int, kind: str, value: str) -> Delta:
    """An addition; a `call:<id>` is of a tool call, and a `part` a text part of its own."""
    if kind.startswith("call"):
        return Delta(index=index, part={"tool_call": {"call_id": kind, "arguments": value}})  # type: ignore[arg-type]
    if kind == "part":
        return Delta(index=index, part={"text": {"text": value}})  # type: ignore[arg-type]
    if kind == "file":
        return Delta(index=index, part={"file": {"name": value}})  # type: ignore[arg-type]
    return Delta(index=index, **{kind: value})  # type: ignore[arg-type]


def frame_of(one: Delta) -> DeltaFrame:
    """As listeners get it."""
    frame = DeltaFrame(index=one.index)
    kind = str(one.WhichOneof("content"))
    if kind == "part":
        frame.part.CopyFrom(one.part)
    else:
        setattr(frame, kind, getattr(one, kind))
    return frame


CONTENTS = st.tuples(
    st.sampled_from(["text", "text", "reasoning", "part", "file", "call:1", "call:2"]),
    st.sampled_from(["", "a", "bc", "é"]),
)


@given(st.lists(CONTENTS, max_size=12))
def test_additions_make_what_the_contract_says(contents: list[tuple[str, str]]) -> None:
    message, plain = opened(), Message()
    for index, content in enumerate(contents):
        one = delta(index, *content)
        assert message.add(one)
        grow(plain, frame_of(one))
        assert list(message.snapshot().parts) == list(plain.parts)
        assert message.snapshot().next_index == index + 1
    assert len(message._parts) == len(plain.parts)


def test_what_continues_and_what_does_not() -> None:
    parts = PartsBuilder()
    parts.add_part(Part(text={"text": "a"}))  # type: ignore[arg-type]
    parts.add_text("text", "b")
    parts.add_text("reasoning", "c")
    parts.add_text("text", "d")
    parts.add_part(Part(tool_call={"call_id": "1", "name": "n", "arguments": "{"}))  # type: ignore[arg-type]
    parts.add_part(Part(tool_call={"call_id": "1", "arguments": "}"}))  # type: ignore[arg-type]
    parts.add_part(Part(tool_call={"call_id": "2", "arguments": "x"}))  # type: ignore[arg-type]
    said = [(str(p.WhichOneof("content")), p) for p in parts.all()]
    assert [kind for kind, _ in said] == ["text", "reasoning", "text", "tool_call", "tool_call"]
    assert said[0][1].text.text == "ab"
    assert (said[3][1].tool_call.name, said[3][1].tool_call.arguments) == ("n", "{}")


def test_an_addition_does_not_change_what_was_said_to_the_log() -> None:
    message = opened()
    first = delta(0, "call:1", "{")
    message.add(first)
    message.add(delta(1, "call:1", "}"))
    assert first.part.tool_call.arguments == "{"


def test_what_is_there_is_ignored_and_a_gap_is_refused_with_the_number_expected() -> None:
    message = opened()
    assert message.add(delta(0, "text", "a"))
    assert not message.add(delta(0, "text", "other"))
    with pytest.raises(Refused) as refused:
        message.add(delta(2, "text", "c"))
    assert refused.value.entry.code == "DELTA_GAP"
    assert refused.value.values["expected"] == 1
    assert message.snapshot().parts[0].text.text == "a"


@pytest.mark.parametrize(
    "bad",
    [Delta(), Delta(text="x" * 262145), Delta(part={"mention": {"user": "a b"}})],  # type: ignore[arg-type]
)
def test_an_addition_that_is_not_valid_changes_nothing(bad: Delta) -> None:
    message = opened()
    size = message.size
    with pytest.raises(Refused) as refused:
        message.add(bad)
    assert refused.value.entry.code == "INVALID_ARGUMENT"
    assert (message.next_index, message.size, message.has_unsaved) == (0, size, False)


@pytest.mark.parametrize("bound", ["bytes", "parts"])
def test_a_message_grows_up_to_its_bound_and_no_further(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = opened()
    if bound == "bytes":
        monkeypatch.setattr(streamed_message, "MAX_OPEN_BYTES", message.size + 4)
        fits, more = delta(0, "text", "éé"), delta(1, "text", "x")
    else:
        monkeypatch.setattr(streamed_message, "MAX_PARTS", 1)
        fits, more = delta(0, "file", "f"), delta(1, "file", "g")
    message.add(fits)
    before = message.snapshot()
    with pytest.raises(Refused) as refused:
        message.add(more)
    assert refused.value.entry.code == "MESSAGE_TOO_LARGE"
    assert message.snapshot() == before


@given(
    st.lists(
        st.sampled_from(["add", "add", "checkpoint", "checkpoint_committed", "checkpoint_failed"]),
        max_size=30,
    )
)
def test_what_is_checkpointed_is_each_addition_once_and_what_is_durable_is_on_disk(steps: list[str]) -> None:
    message = opened()
    disk: list[int] = []
    under_way: list[int] | None = None
    for step in steps:
        if step == "add":
            message.add(delta(message.next_index, "text", "x"))
        elif step == "checkpoint" and message.has_unsaved:
            assert under_way is None
            deltas = ReplyDeltas.FromString(message.checkpoint().deltas).deltas
            under_way = [one.index for one in deltas]
            assert message.unsaved_bytes == 0
        elif step in ("checkpoint_committed", "checkpoint_failed") and under_way is not None:
            if step == "checkpoint_committed":
                disk += under_way
            getattr(message, step)()
            under_way = None
        assert disk == list(range(message.durable_index))
        assert message.has_unsaved == (under_way is None and message.next_index > len(disk))


def test_what_the_log_holds_is_restored_and_gone_on_from() -> None:
    message, again = opened(), opened()
    for index in range(3):
        message.add(delta(index, "text", str(index)))
        again.restore(ReplyDeltas.FromString(message.checkpoint().deltas))
        message.checkpoint_committed()
    assert again.snapshot() == message.snapshot()
    assert (again.durable_index, again.has_unsaved, again.unsaved_bytes) == (3, False, 0)
    assert again.add(delta(3, "text", "3"))


def test_each_that_takes_it_up_gets_a_higher_epoch_even_if_two_are_under_way() -> None:
    message = opened()
    one, two = message.begin_takeover("one"), message.begin_takeover("two")
    assert (one.epoch, two.epoch, message.producer.epoch) == (2, 3, 1)
    assert message.checkpoint().producer == two
    message.producer = one
    message.takeover_failed(two)
    assert message.checkpoint().producer == one
    assert message.begin_takeover("three").epoch == 3


def test_the_first_of_two_take_ups_that_fails_leaves_the_second_alone() -> None:
    message = opened()
    one, two = message.begin_takeover("one"), message.begin_takeover("two")
    message.takeover_failed(one)
    assert message.checkpoint().producer == two


def test_it_ends_as_it_is() -> None:
    message = opened(reply_to="e1-0")
    message.add(delta(0, "text", "all"))
    message.ended = Ended(COMPLETE)
    final = message.final()
    assert (final.state, final.next_index, final.parts[0].text.text) == (COMPLETE, 1, "all")
    assert final.reply_to == message.reply_to == "e1-0"
