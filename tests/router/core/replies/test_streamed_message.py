"""One streamed message: its deltas, its checkpoints and its producers."""

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
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.values.log_records import Producer
from trunkline_router.core.values.message_states import COMPLETE, OPEN
from trunkline_router.core.values.topics import PERSON, TopicKey

from tests.router.core.harness.client import grow

ALICE: TopicKey = ("t", "a", "w", PERSON, "alice")


def opened(**more: Any) -> StreamedMessage:
    """Return a new open message."""
    message = Message(id="e1-1", state=OPEN, **more)
    message.position.seq = 1
    return StreamedMessage(ALICE, message, Producer("one", 1), 0.0)


def delta(index: int, kind: str, value: str) -> Delta:
    """Return a delta; kind `call:<id>` extends a tool call, and `part` is a whole text part."""
    if kind.startswith("call"):
        return Delta(index=index, part={"tool_call": {"call_id": kind, "arguments": value}})  # type: ignore[arg-type]
    if kind == "part":
        return Delta(index=index, part={"text": {"text": value}})  # type: ignore[arg-type]
    if kind == "file":
        return Delta(index=index, part={"file": {"name": value}})  # type: ignore[arg-type]
    return Delta(index=index, **{kind: value})  # type: ignore[arg-type]


def frame_of(one: Delta) -> DeltaFrame:
    """Return the delta as readers receive it."""
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
def test_deltas_build_parts_as_the_contract_says(contents: list[tuple[str, str]]) -> None:
    message, plain = opened(), Message()
    for index, content in enumerate(contents):
        one = delta(index, *content)
        assert message.add(one)
        grow(plain, frame_of(one))
        assert list(message.snapshot().parts) == list(plain.parts)
        assert message.snapshot().next_index == index + 1
    assert len(message._parts) == len(plain.parts)


def test_a_delta_continues_only_a_part_of_its_own_kind() -> None:
    parts = PartsBuilder()
    parts.add_part(Part(text={"text": "a"}))  # type: ignore[arg-type]
    parts.add_text("text", "b")
    parts.add_text("reasoning", "c")
    parts.add_text("text", "d")
    parts.add_part(Part(tool_call={"call_id": "1", "name": "n", "arguments": "{"}))  # type: ignore[arg-type]
    parts.add_part(Part(tool_call={"call_id": "1", "arguments": "}"}))  # type: ignore[arg-type]
    parts.add_part(Part(tool_call={"call_id": "2", "arguments": "x"}))  # type: ignore[arg-type]
    built = [(str(p.WhichOneof("content")), p) for p in parts.all()]
    assert [kind for kind, _ in built] == ["text", "reasoning", "text", "tool_call", "tool_call"]
    assert built[0][1].text.text == "ab"
    assert (built[3][1].tool_call.name, built[3][1].tool_call.arguments) == ("n", "{}")


def test_a_later_delta_does_not_change_a_logged_one() -> None:
    message = opened()
    first = delta(0, "call:1", "{")
    message.add(first)
    message.add(delta(1, "call:1", "}"))
    assert first.part.tool_call.arguments == "{"


def test_a_repeat_is_ignored_and_a_gap_is_rejected_with_the_expected_index() -> None:
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
def test_an_invalid_delta_changes_nothing(bad: Delta) -> None:
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
def test_each_delta_is_checkpointed_once_and_the_durable_index_is_on_disk(steps: list[str]) -> None:
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


def test_a_restored_message_continues_where_the_log_ends() -> None:
    message, again = opened(), opened()
    for index in range(3):
        message.add(delta(index, "text", str(index)))
        again.restore(ReplyDeltas.FromString(message.checkpoint().deltas))
        message.checkpoint_committed()
    assert again.snapshot() == message.snapshot()
    assert (again.durable_index, again.has_unsaved, again.unsaved_bytes) == (3, False, 0)
    assert again.add(delta(3, "text", "3"))


def test_each_takeover_gets_a_higher_epoch_even_if_two_are_under_way() -> None:
    message = opened()
    one, two = message.begin_takeover("one"), message.begin_takeover("two")
    assert (one.epoch, two.epoch, message.producer.epoch) == (2, 3, 1)
    assert message.checkpoint().producer == two
    message.producer = one
    message.takeover_failed(two)
    assert message.checkpoint().producer == one
    assert message.begin_takeover("three").epoch == 3


def test_a_failed_takeover_does_not_affect_the_next_one() -> None:
    message = opened()
    one, two = message.begin_takeover("one"), message.begin_takeover("two")
    message.takeover_failed(one)
    assert message.checkpoint().producer == two


def test_a_message_ends_with_its_parts_so_far() -> None:
    message = opened(reply_to="e1-0")
    message.add(delta(0, "text", "all"))
    message.ended = MessageEnd(COMPLETE)
    final = message.final()
    assert (final.state, final.next_index, final.parts[0].text.text) == (COMPLETE, 1, "all")
    assert final.reply_to == message.reply_to == "e1-0"


def custom(index: int, values: int) -> Delta:
    """Return a part with this many free-form values."""
    return Delta(index=index, part={"custom": {"data": {str(value): True for value in range(values)}}})  # type: ignore[arg-type]


def test_the_free_form_values_of_a_message_are_limited_all_together() -> None:
    message = opened()
    message.add(custom(0, 4096))
    message.add(custom(1, 4000))
    with pytest.raises(Refused) as refused:
        message.add(custom(2, 97))
    assert refused.value.entry.code == "MESSAGE_TOO_LARGE"
    assert "8192 values" in str(refused.value)
    message.add(custom(2, 96))
    again = StreamedMessage(ALICE, message.snapshot(), Producer("one", 1), 0.0)
    with pytest.raises(Refused):
        again.add(custom(3, 1))


def test_stored_deltas_from_before_a_limit_are_restored() -> None:
    message = opened()
    message.restore(ReplyDeltas(deltas=[custom(0, 5000), custom(1, 5000)]))
    assert len(message.snapshot().parts) == message.next_index == 2
