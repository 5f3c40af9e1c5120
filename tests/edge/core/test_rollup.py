"""Rollup windows: deltas are joined, encoded once per group, and never overtaken."""

from __future__ import annotations

import json

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_edge.core.deltas import MAX_JOINED_BYTES
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.rollup import MAX_WAITING_BYTES

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    Counting,
    ack,
    connected,
    deliver,
    delta,
    ended,
    heard,
    join,
    leave,
    linked_core,
    message,
    open_all,
    open_message,
    opened,
    parsed,
    publish,
    send,
    streaming,
    tables,
    topic,
)


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


def test_a_delta_that_goes_on_is_its_text_and_no_more(core: EdgeCore) -> None:
    [listener] = streaming(core, rollup_ms=0)
    deliver(core, delta(1, 0, "Hel"))
    [frame] = parsed(b"".join(listener.pending))
    assert frame.data == b'{"type":"delta","text":"Hel"}'


def test_deltas_of_one_window_are_one_frame(core: EdgeCore) -> None:
    [listener] = streaming(core)
    for index, now in enumerate((0, 0.02, 0.04)):
        deliver(core, delta(1, index), now=now)
        core.time_passed(now)
        assert heard(listener) == []
    assert core.next_due == pytest.approx(0.05)
    core.time_passed(0.05)
    assert heard(listener) == ["+0 1 2 "]
    assert core.next_due is None
    assert (core.counts.deltas_in, core.counts.delta_frames, core.counts.deltas_delivered) == (3, 1, 3)


@pytest.mark.parametrize("begun", [0.001 * ms for ms in range(30)])
@pytest.mark.parametrize("rollup_ms", [1, 40, 500])
def test_a_window_ends_a_little_late_never_early(core: EdgeCore, begun: float, rollup_ms: int) -> None:
    streaming(core, rollup_ms=rollup_ms)
    deliver(core, delta(1, 0), now=begun)
    assert core.next_due is not None
    assert 0.0019 <= core.next_due - begun - rollup_ms / 1000 <= 0.0121


def test_windows_of_many_streams_end_together_and_only_they(core: EdgeCore) -> None:
    [first, second] = [opened(core, rollup_ms=40) for _ in range(2)]
    deliver(core, topic(1, "team"), topic(2, "other"))
    deliver(core, connected(first), join(first, 1), connected(second), join(second, 2))
    deliver(core, delta(1, 0), now=0.001)
    deliver(core, delta(2, 0), now=0.007)
    core.time_passed(0.05)
    assert core.next_due is None
    assert heard(first) == heard(second) == ["connected", "r@0+0 "]


def test_without_a_window_a_delta_leaves_with_its_batch_and_what_came_together_is_joined(
    core: EdgeCore,
) -> None:
    [listener] = streaming(core, rollup_ms=0)
    deliver(core, delta(1, 0), delta(1, 1))
    assert heard(listener) == ["+0 1 "]
    assert core.next_due is None


def test_each_listener_has_its_own_window(core: EdgeCore) -> None:
    [at_once] = streaming(core, rollup_ms=0)
    slow = opened(core, PROTO, rollup_ms=40)
    deliver(core, connected(slow), send(slow, ServerFrame(message=open_message("team"))), join(slow, 1))
    assert heard(slow) == ["connected", "message 1"]
    deliver(core, delta(1, 0))
    deliver(core, delta(1, 1))
    assert (heard(at_once), heard(slow)) == (["+0 ", "+1 "], [])
    core.time_passed(1)
    assert (heard(at_once), heard(slow)) == ([], ["+0 1 "])


def test_the_end_leaves_with_the_last_text_at_once(core: EdgeCore) -> None:
    [listener] = streaming(core)
    deliver(core, delta(1, 0))
    deliver(core, delta(1, 1), ended(1))
    assert heard(listener) == ["+0 1 ", "change ended"]
    assert not tables(core)
    assert not next(iter(core.fanout._topics.values())).open_messages


def test_whatever_is_published_comes_after_the_deltas_before_it(core: EdgeCore) -> None:
    [listener] = streaming(core)
    deliver(core, delta(1, 0), publish(1, message("team", 2)), delta(1, 1))
    assert heard(listener) == ["+0 ", "message 2"]
    core.time_passed(1)
    assert heard(listener) == ["+1 "]


@pytest.mark.parametrize("names", ["a", "abc"])
def test_whatever_is_sent_to_one_comes_after_its_deltas_and_the_others_window_goes_on(
    core: EdgeCore, names: str
) -> None:
    first, *others = streaming(core, names)
    deliver(core, delta(1, 0))
    core.client_frames.received(first, b'{"type":"ping","id":"p"}')
    assert heard(first) == ["+0 ", "pong p"]
    deliver(core, delta(1, 1), now=0.02)
    deliver(core, ack(first, "m"), now=0.03)
    assert heard(first) == ["+1 ", "ack m"]
    deliver(core, delta(1, 2), now=0.03)
    assert [heard(one) for one in others] == [[]] * len(others)
    core.time_passed(1)
    assert heard(first) == ["+2 "]
    assert [heard(one) for one in others] == [["+0 1 2 "]] * len(others)


def test_text_and_reasoning_are_not_joined_with_each_other_and_a_part_with_nothing(core: EdgeCore) -> None:
    [listener] = streaming(core)
    for index, kind in enumerate(["text", "reasoning", "reasoning", "part", "part", "text"]):
        entry = delta(1, index)
        if kind == "reasoning":
            entry.publish.frame.delta.reasoning = f"{index}"
        elif kind == "part":
            entry.publish.frame.delta.part.tool_call.arguments = f"{index}"
        deliver(core, entry)
    core.time_passed(1)
    frames = [json.loads(frame.data) for frame in parsed(b"".join(listener.pending))]
    for frame in frames:
        assert frame.pop("type") == "delta"
    assert frames == [
        {"text": "0 "},
        {"reasoning": "12"},
        {"part": {"type": "tool_call", "arguments": "3"}},
        {"part": {"type": "tool_call", "arguments": "4"}},
        {"text": "5 "},
    ]


def test_streams_side_by_side_are_joined_each_and_named(core: EdgeCore) -> None:
    [listener] = streaming(core)
    for index in range(3):
        deliver(core, delta(1, index), delta(1, index, ident="s"))
    core.time_passed(1)
    assert heard(listener) == ["+0 1 2 ", "s@0+0 1 2 "]
    deliver(core, delta(1, 3, ident="s"), ended(1))
    assert heard(listener) == ["+3 ", "change ended"]


def test_the_router_may_have_joined_deltas(core: EdgeCore) -> None:
    [listener] = streaming(core)
    deliver(core, delta(1, 0, "abc", count=3), delta(1, 3, "d"))
    core.time_passed(1)
    deliver(core, delta(1, 4, "ef", count=2))
    core.time_passed(2)
    assert heard(listener) == ["+abcd", "+ef"]
    assert (core.counts.deltas_in, core.counts.delta_frames, core.counts.deltas_delivered) == (6, 2, 6)


def test_no_more_is_joined_than_any_client_takes_and_no_more_waits(core: EdgeCore) -> None:
    [listener] = streaming(core)
    text = "x" * (MAX_WAITING_BYTES // 3)
    for index in range(3):
        assert heard(listener) == []
        deliver(core, delta(1, index, text))
    texts = heard(listener)
    assert "".join(texts).replace("+", "") == text * 3
    assert max(map(len, texts)) <= MAX_JOINED_BYTES
    assert not tables(core)


def test_each_form_is_made_once_for_all_who_hear_alike() -> None:
    core, codec = linked_core(), Counting(JSON)
    listeners = open_all(core, "abcdef", codec, rollup_ms=40)
    deliver(core, publish(1, open_message("team")))
    late = [opened(core, codec, rollup_ms=40) for _ in range(4)]
    for one in late:
        deliver(core, connected(one), join(one, 1))
    for one in [*listeners, *late]:
        one.pending.clear()
    codec.encoded = 0
    deliver(core, delta(1, 0))
    deliver(core, delta(1, 1))
    core.time_passed(1)
    assert codec.encoded == 2
    assert len({id(one.pending[0]) for one in listeners}) == 1
    assert [heard(one) for one in listeners] == [["+0 1 "]] * 6
    assert [heard(one) for one in late] == [["r@0+0 1 "]] * 4


def test_who_joins_hears_what_comes_after_its_snapshot(core: EdgeCore) -> None:
    [first] = streaming(core)
    deliver(core, delta(1, 0))
    late = opened(core, rollup_ms=40)
    snapshot = ServerFrame(message=open_message("team", next_index=1))
    deliver(core, connected(late), send(late, snapshot), join(late, 1), delta(1, 1))
    core.time_passed(1)
    assert heard(first) == ["+0 1 "]
    assert heard(late) == ["connected", "message 1", "+1 "]


@pytest.mark.parametrize("joined", [False, True])
def test_what_a_snapshot_for_one_holds_is_not_told_it_again(core: EdgeCore, joined: bool) -> None:
    [first] = streaming(core)
    late = opened(core, rollup_ms=40)
    snapshot = send(late, ServerFrame(message=open_message("team", next_index=2)))
    arriving = [join(late, 1), snapshot] if joined else [snapshot, join(late, 1)]
    deliver(core, connected(late), *arriving)
    deliver(core, delta(1, 0), delta(1, 1), delta(1, 2))
    core.time_passed(1)
    assert heard(first) == ["+0 1 2 "]
    assert heard(late) == ["connected", "message 1", "+2 "]
    [audience] = core.fanout.subscriptions_of(first).values()
    assert not audience.skips


def test_who_leaves_has_heard_what_came_before(core: EdgeCore) -> None:
    leaver, stayer = streaming(core, "ab")
    deliver(core, delta(1, 0))
    deliver(core, leave(leaver, 1), delta(1, 1))
    core.time_passed(1)
    assert (heard(leaver), heard(stayer)) == (["+0 "], ["+0 1 "])


def test_nothing_is_left_of_those_who_are_gone(core: EdgeCore) -> None:
    first, second = streaming(core, "ab")
    first.has_backlog = True
    deliver(core, delta(1, 0))
    core.time_passed(1)
    deliver(core, delta(1, 1))
    core.client_frames.received(second, b'{"type":"ping"}')
    [audience] = core.fanout.subscriptions_of(first).values()
    assert set(audience.offsets) == {first, second}
    core.gone(first)
    assert set(audience.offsets) == {second}
    assert len(audience.deltas) == 1
    core.gone(second)
    assert (audience.offsets, audience.subscribers, tables(core)) == ({}, set(), [])
    [known] = core.fanout._topics.values()
    assert (known.groups, known.open_messages) == ({}, {})
    core.time_passed(2)
    assert core.next_due is None


def test_closing_comes_after_what_waits(core: EdgeCore) -> None:
    [listener] = streaming(core)
    deliver(core, delta(1, 0))
    core.sessions.close(listener, catalogue.RESTARTING.refused())
    assert heard(listener) == ["+0 ", "closing RESTARTING"]
    assert not tables(core)
