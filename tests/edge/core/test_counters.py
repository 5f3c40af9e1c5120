"""Counters of ended connections and of dropped frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline_edge.core.counters import CLIENT_LEFT
from trunkline_edge.core.framing import count_websocket_frames, websocket_frame

from tests.edge.core.core_harness import (
    ack,
    close,
    deliver,
    linked_core,
    message,
    open_all,
    opened,
    publish,
)


def test_each_end_of_a_connection_is_counted_once_by_its_first_cause() -> None:
    core = linked_core()
    left, lost, silent, slow, sent, stopped = open_all(core, "abcdef")
    core.gone(left, CLIENT_LEFT)
    core.gone(lost)
    for _ in range(3):
        core.sessions.heartbeat([silent])
    core.backpressure.close_slow(slow)
    deliver(core, close(sent))
    core.sessions.close(stopped, catalogue.RESTARTING.refused())
    for each in (left, lost, silent, slow, sent, stopped):
        core.gone(each, CLIENT_LEFT)
    assert core.counts.closed_by == {
        "CLIENT_LEFT": 1,
        "CLIENT_LOST": 1,
        "HEARTBEAT_LOST": 1,
        "SLOW_CONSUMER": 1,
        "CLOSED_BY_BACKEND": 1,
        "RESTARTING": 1,
    }
    assert (core.counts.opened, core.counts.closed) == (6, 6)


def test_who_was_never_accepted_has_not_ended() -> None:
    core = linked_core()
    core.gone(opened(core))
    deliver(core, close(opened(core)))
    assert (core.counts.closed, core.counts.closed_by) == (0, {})


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_frame_for_who_is_gone_or_being_closed_is_dropped_and_counted(is_gone: bool) -> None:
    core = linked_core()
    one, other = open_all(core, "ab")
    if is_gone:
        core.gone(one)
    else:
        core.sessions.close(one, catalogue.RESTARTING.refused())
    before = core.counts.deliveries
    deliver(core, ack(one, "m1"), publish(1, message("team", 1)))
    assert (core.counts.dropped, core.counts.deliveries - before) == (1, 1)
    assert other.pending


@given(st.lists(st.integers(0, 200) | st.sampled_from([65535, 65536, 70000]), max_size=8))
def test_frames_are_counted_in_what_they_were_joined_to(sizes: list[int]) -> None:
    data = b"".join(websocket_frame(b"x" * size, False) for size in sizes)
    assert count_websocket_frames(data) == len(sizes)
