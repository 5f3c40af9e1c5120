"""Snapshots of open messages are the same in edge and router."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.frame_pb2 import DeltaFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
    MESSAGE_STATE_FAILED,
    Change,
    Delta,
    Message,
    Part,
)
from trunkline_edge.core.stream_snapshots import StreamSnapshots
from trunkline_router.core.replies.streamed_message import MessageEnd, StreamedMessage
from trunkline_router.core.values.log_records import Producer
from trunkline_router.core.values.topics import topic_of

from tests.edge.core.core_harness import open_message

texts = st.sampled_from(["", "a", "b ", "ü", "\n"])


def text_part(kind: str, text: str) -> Part:
    part = Part()
    getattr(part, kind).text = text
    return part


def call(ident: str, arguments: str) -> Part:
    part = Part()
    part.tool_call.call_id, part.tool_call.arguments = ident, arguments
    return part


parts = st.builds(text_part, st.sampled_from(["text", "reasoning", "quote"]), texts) | st.builds(
    call, st.sampled_from("cd"), texts
)
deltas = st.lists(
    st.tuples(st.just("text"), texts)
    | st.tuples(st.just("reasoning"), texts)
    | st.tuples(st.just("part"), parts)
)


def opened() -> tuple[StreamedMessage, StreamSnapshots, Message]:
    """Return a new open message, in the router and at an edge."""
    message = open_message("team")
    del message.parts[:]
    snapshots = StreamSnapshots()
    snapshots.put(message)
    return StreamedMessage(topic_of(message.address), message, Producer("w", 1), 0), snapshots, message


@given(deltas, st.lists(st.integers(1, 4)), st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_deltas_add_up_as_in_the_router(
    contents: list[tuple[str, str | Part]], joins: list[int], looks: set[int], resets: set[int]
) -> None:
    """Independently of joins on the way, of reads, and of snapshots."""
    router, snapshots, message = opened()
    joins = joins.copy()
    waiting: list[Delta] = []
    for index, (kind, content) in enumerate(contents):
        delta = Delta(index=index)
        if isinstance(content, Part):
            delta.part.CopyFrom(content)
        else:
            setattr(delta, kind, content)
        router.add(delta)
        # The router joins text only.
        if waiting and (kind != "text" or len(waiting) >= (joins[0] if joins else 1)):
            append_twice(snapshots, message.id, waiting)
            joins = joins[1:]
        waiting.append(delta)
        if kind != "text" or index in looks or index in resets:
            append_twice(snapshots, message.id, waiting)
        if index in looks:
            assert snapshots.get(message.id) == router.snapshot()
        if index in resets:
            snapshots.put(router.snapshot())
    append_twice(snapshots, message.id, waiting)
    assert snapshots.get(message.id) == router.snapshot()
    router.ended = MessageEnd(MESSAGE_STATE_FAILED)
    end = Change(message_id=message.id, kind=CHANGE_KIND_ENDED, state=MESSAGE_STATE_FAILED)
    final = snapshots.complete(end).message
    final.ClearField("updated_at")
    assert final == router.final()
    assert snapshots.get(message.id) == router.snapshot()


def test_only_the_same_tool_call_goes_on() -> None:
    router, snapshots, message = opened()
    for index, part in enumerate([call("c", "{"), call("c", "}"), call("d", "{"), call("c", "")]):
        delta = Delta(index=index, part=part)
        router.add(delta)
        append_twice(snapshots, message.id, [delta])
    assert snapshots.get(message.id) == router.snapshot()
    assert [part.tool_call.arguments for part in router.snapshot().parts] == ["{}", "{", ""]


def append_twice(snapshots: StreamSnapshots, message_id: str, waiting: list[Delta]) -> None:
    """Append the deltas as one frame, twice."""
    if not waiting:
        return
    first = waiting[0]
    frame = DeltaFrame(message_id=message_id, index=first.index)
    kind = first.WhichOneof("content") or ""
    if kind == "part":
        frame.part.CopyFrom(first.part)
    else:
        setattr(frame, kind, "".join(getattr(each, kind) for each in waiting))
    for _ in range(2):
        snapshots.append(frame, len(waiting))
    waiting.clear()


def added(snapshots: StreamSnapshots, index: int, count: int = 1) -> str:
    snapshots.append(DeltaFrame(message_id="r", index=index, text=f"{index} "), count)
    known = snapshots.get("r")
    return "" if known is None else known.parts[0].text.text


def test_what_is_known_or_leaves_a_gap_is_not_added() -> None:
    snapshots = StreamSnapshots()
    assert added(snapshots, 0) == ""
    snapshots.put(open_message("team", text="x ", next_index=3))
    assert added(snapshots, 2) == "x "
    assert added(snapshots, 4) == "x "
    assert added(snapshots, 3, count=2) == "x 3 "
    assert added(snapshots, 4) == "x 3 "
    assert added(snapshots, 5) == "x 3 5 "


def test_a_snapshot_for_all_replaces_what_is_known_and_one_for_a_newcomer_only_adds() -> None:
    snapshots = StreamSnapshots()
    snapshots.put_newer(open_message("team", text="one", next_index=1))
    assert added(snapshots, 1) == "one1 "
    snapshots.put_newer(open_message("team", text="older", next_index=1))
    assert added(snapshots, 0) == "one1 "
    snapshots.put_newer(open_message("team", text="newer", next_index=3))
    assert added(snapshots, 0) == "newer"
    snapshots.put(open_message("team", text="back", next_index=2))
    assert added(snapshots, 2) == "back2 "


def test_what_is_given_is_kept_apart() -> None:
    snapshots, given = StreamSnapshots(), open_message("team", text="x ")
    snapshots.put(given)
    given.parts[0].text.text = "changed"
    assert added(snapshots, 0) == "x 0 "
    end = snapshots.complete(Change(message_id="r", kind=CHANGE_KIND_ENDED)).message
    assert added(snapshots, 1) == "x 0 1 "
    assert end.parts[0].text.text == "x 0 "


def test_an_end_is_completed_with_how_it_has_ended() -> None:
    snapshots = StreamSnapshots()
    snapshots.put(open_message("team", text="x", next_index=2))
    end = Change(message_id="r", kind=CHANGE_KIND_ENDED, state=MESSAGE_STATE_FAILED)
    end.changed_at.seconds = 7
    end.error.code = "BROKEN"
    before = end.SerializeToString()
    message = snapshots.complete(end).message
    assert end.SerializeToString() == before
    assert (message.state, message.error.code, message.updated_at.seconds) == (
        MESSAGE_STATE_FAILED,
        "BROKEN",
        7,
    )
    assert (message.parts[0].text.text, message.next_index) == ("x", 2)


@pytest.mark.parametrize("kind", [CHANGE_KIND_RECALLED, CHANGE_KIND_EDITED])
def test_only_an_end_is_completed(kind: int) -> None:
    """A recalled text must not return."""
    snapshots = StreamSnapshots()
    snapshots.put(open_message("team"))
    change = Change(message_id="r", kind=kind)  # type: ignore[arg-type]
    assert snapshots.complete(change) is change


def test_the_routers_own_message_is_not_replaced_and_the_unknown_is_left_as_it_is() -> None:
    snapshots = StreamSnapshots()
    snapshots.put(open_message("team"))
    own = Change(message_id="r", kind=CHANGE_KIND_ENDED)
    own.message.id = "r"
    unknown = Change(message_id="q", kind=CHANGE_KIND_ENDED)
    assert snapshots.complete(own) is own
    assert snapshots.complete(unknown) is unknown
    snapshots.forget("r")
    snapshots.forget("q")
    assert snapshots.get("r") is None
    snapshots.put(open_message("team"))
    snapshots.clear()
    assert snapshots.get("r") is None
