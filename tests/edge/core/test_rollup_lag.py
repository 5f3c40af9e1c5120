"""Deltas for clients with a backlog, and across links."""

from __future__ import annotations

import pytest
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    deliver,
    delta,
    ended,
    heard,
    join,
    linked_core,
    open_message,
    publish,
    streaming,
    topic,
)


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


# Slow readers


@pytest.mark.parametrize("rollup_ms", [0, 40])
def test_for_one_that_lags_deltas_gather_until_it_has_caught_up(core: EdgeCore, rollup_ms: int) -> None:
    slow, fast = streaming(core, "ab", rollup_ms)
    slow.has_backlog = True
    for index in range(5):
        deliver(core, delta(1, index), now=index)
        core.time_passed(index + 0.5)
    assert (heard(slow), heard(fast)) == ([], ["+0 ", "+1 ", "+2 ", "+3 ", "+4 "])
    assert slow in core.dirty
    assert core.fanout.backlog_bytes(slow) > core.fanout.backlog_bytes(fast) == 0
    slow.has_backlog = False
    core.backpressure.caught_up(slow)
    assert heard(slow) == ["+0 1 2 3 4 "]
    assert core.fanout.backlog_bytes(slow) == 0
    deliver(core, delta(1, 5), now=9)
    core.time_passed(10)
    assert (heard(slow), heard(fast)) == (["+5 "], ["+5 "])
    [audience] = core.fanout.subscriptions_of(slow).values()
    assert (audience.offsets, audience.deltas) == ({}, [])


def test_what_else_must_be_written_to_one_that_lags_takes_along_what_gathered(core: EdgeCore) -> None:
    slow, _ = streaming(core, "ab", 0)
    slow.has_backlog = True
    deliver(core, delta(1, 0))
    core.client_frames.received(slow, b'{"type":"ping","id":"p"}')
    assert heard(slow) == ["+0 ", "pong p"]
    deliver(core, delta(1, 1))
    deliver(core, ended(1))
    assert heard(slow) == ["+1 ", "change ended"]


def test_one_that_is_closed_for_being_slow_is_not_told_what_gathered(core: EdgeCore) -> None:
    slow, _ = streaming(core, "ab", 0)
    slow.has_backlog = True
    deliver(core, delta(1, 0))
    core.backpressure.close_slow(slow)
    core.backpressure.close_slow(slow)
    assert heard(slow) == ["closing SLOW_CONSUMER"]
    assert core.counts.slow_consumers == 1


# A new link


def relinked(core: EdgeCore, listeners: list[Connection], *entries: RouterEntry) -> None:
    """Break the link and make another, on which topic 1 has number 7."""
    core.link_lost()
    core.linked()
    deliver(core, topic(7, "team"), *(join(one, 7) for one in listeners), *entries, now=1)


def test_after_a_new_link_the_snapshot_counts(core: EdgeCore) -> None:
    listeners = streaming(core, "ab")
    deliver(core, delta(1, 0), delta(1, 1))
    snapshot = publish(7, open_message("team", next_index=4), replayed=True)
    relinked(core, listeners, snapshot, delta(7, 3), delta(7, 4))
    core.time_passed(2)
    assert [heard(one) for one in listeners] == [["+0 1 ", "message 1", "+4 "]] * 2


def test_what_waits_when_the_link_breaks_is_given_when_its_window_ends(core: EdgeCore) -> None:
    [listener] = streaming(core)
    deliver(core, delta(1, 0))
    core.link_lost()
    core.time_passed(1)
    assert heard(listener) == ["+0 "]
