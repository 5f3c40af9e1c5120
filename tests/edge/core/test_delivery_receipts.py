"""Delivery receipts on behalf of clients that send none."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import EdgeEntry
from trunkline.v1.frame_pb2 import ErrorFrame, ServerFrame
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    PROTO,
    ack,
    connected,
    deliver,
    ended,
    join,
    leave,
    linked_core,
    message,
    opened,
    publish,
    send,
    taken,
    topic,
)
from tests.edge.core.dialect_harness import PING, dialect, shown
from tests.edge.core.snapshot_codec import Shown


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


TELLING = Shown(reports_delivery=True)


def delivered(core: EdgeCore) -> list[str]:
    """Take the receipts for the router: connection, topic and position."""
    entries = [entry for one in taken(core.uplink) for entry in one.entries]
    return [_delivered(entry) for entry in entries if entry.frame.frame.HasField("delivered")]


def _delivered(entry: EdgeEntry) -> str:
    sent = entry.frame.frame.delivered
    place = f"{sent.position.epoch}{sent.position.seq}"
    return f"{entry.frame.connection} {sent.address.conversation.id}@{place}"


def step(core: EdgeCore) -> None:
    """Write as the runtime does, and report who has taken everything."""
    for connection in list(core.dirty):
        if not connection.has_backlog:
            core.sessions.report_delivery(connection)
    core.dirty.clear()


def test_what_was_taken_is_told_once_for_each_topic_and_step(core: EdgeCore) -> None:
    client, native = dialect(core, TELLING), dialect(core, PROTO)
    step(core)
    delivered(core)
    deliver(core, publish(1, message("team", 1)), publish(1, message("team", 2)))
    step(core)
    assert delivered(core) == [f"{client.number} team@e2"]
    assert native.delivery_reporter is None
    deliver(core, ended(1, seq=3))
    step(core)
    assert delivered(core) == [f"{client.number} team@e3"]
    core.client_frames.received(client, PING)
    core.sessions.send_heartbeat(client)
    step(core)
    assert delivered(core) == []


def test_who_lags_has_not_taken_what_it_was_written(core: EdgeCore) -> None:
    client = dialect(core, TELLING)
    deliver(core, publish(1, message("team", 1)))
    client.has_backlog = True
    deliver(core, publish(1, message("team", 2)))
    core.sessions.send_heartbeat(client)
    step(core)
    assert delivered(core) == []
    core.backpressure.caught_up(client)
    core.sessions.report_delivery(client)
    assert delivered(core) == [f"{client.number} team@e2"]


def test_a_codec_that_tells_it_may_follow_one_that_does_not(core: EdgeCore) -> None:
    client = dialect(core, Shown())
    core.fanout.switch_codec(client, TELLING)
    deliver(core, publish(1, message("team", 1)))
    step(core)
    assert delivered(core) == [f"{client.number} team@e1"]


def test_who_joins_has_taken_what_came_before(core: EdgeCore) -> None:
    client = opened(core, TELLING)
    deliver(core, topic(1, "team", seq=7), topic(2, "empty"), connected(client))
    step(core)
    assert delivered(core) == []
    deliver(core, join(client, 1, 2))
    step(core)
    # No receipt for a log without entries.
    assert delivered(core) == [f"{client.number} team@e7"]


def test_the_place_that_its_own_words_have_is_told_with_a_heartbeat(core: EdgeCore) -> None:
    client = dialect(core, TELLING)
    entry = ack(client, "m")
    entry.send.topic = 1
    entry.send.frame.ack.position.epoch, entry.send.frame.ack.position.seq = "e", 4
    deliver(core, entry)
    step(core)
    core.sessions.send_heartbeat(client)
    step(core)
    assert delivered(core) == [f"{client.number} team@e4"]


def test_what_could_not_be_told_is_told_on_the_next_link(core: EdgeCore) -> None:
    client = dialect(core, TELLING)
    deliver(core, publish(1, message("team", 1)))
    step(core)
    deliver(core, publish(1, message("team", 2)))
    core.link_lost()
    step(core)
    core.linked()
    delivered(core)
    deliver(core, topic(5, "team", seq=2), join(client, 5))
    step(core)
    assert delivered(core) == [f"{client.number} team@e2"]


def test_what_was_told_on_a_link_that_broke_is_told_again(core: EdgeCore) -> None:
    client = dialect(core, TELLING)
    deliver(core, publish(1, message("team", 1)))
    step(core)
    core.link_lost()
    core.linked()
    deliver(core, topic(5, "team", seq=1), join(client, 5))
    step(core)
    assert delivered(core) == [f"{client.number} team@e1"]


def test_nothing_is_told_while_the_uplink_is_full_and_all_of_it_later() -> None:
    core = EdgeCore(linked_core().limits)
    core.linked()
    core.uplink.max_bytes = 0
    client = dialect(core, TELLING)
    core.uplink.add(1 << 20)
    assert core.uplink.is_full
    for seq in range(1, 9):
        deliver(core, publish(1, message("team", seq)))
        step(core)
    assert delivered(core) == []
    core.sessions.send_heartbeat(client)
    step(core)
    assert delivered(core) == [f"{client.number} team@e8"]


def test_nothing_is_told_of_topics_that_were_left_or_for_who_is_closed(core: EdgeCore) -> None:
    client, closed, gone = (dialect(core, TELLING) for _ in range(3))
    deliver(core, publish(1, message("team", 1)))
    step(core)
    assert len(delivered(core)) == 3
    deliver(core, publish(1, message("team", 2)), leave(client, 1))
    core.sessions.close(closed, catalogue.RESTARTING.refused())
    core.gone(gone)
    for each in (client, closed, gone):
        core.sessions.report_delivery(each)
        assert each.delivery_reporter is not None
        assert not each.delivery_reporter._reported
    assert delivered(core) == []


@pytest.mark.parametrize("code", ["CURSOR_MISMATCH", "NOT_SUBSCRIBED"])
def test_a_refusal_of_what_the_edge_told_is_not_for_the_client(core: EdgeCore, code: str) -> None:
    client, native = dialect(core, TELLING), dialect(core, PROTO)
    deliver(core, publish(1, message("team", 1)))
    step(core)
    delivered(core)
    shown(client)
    native.pending.clear()
    refused = ServerFrame(error=ErrorFrame(code=code))
    deliver(core, send(client, refused), send(native, refused))
    assert client.pending == []
    assert shown(native) == ["error"]
    # Reported again: the router may have advanced.
    core.sessions.send_heartbeat(client)
    step(core)
    assert delivered(core) == [f"{client.number} team@e1"]


@pytest.mark.parametrize("error", [ErrorFrame(code="CURSOR_MISMATCH", id="m"), ErrorFrame(code="INTERNAL")])
def test_any_other_refusal_is(core: EdgeCore, error: ErrorFrame) -> None:
    client = dialect(core, TELLING)
    deliver(core, send(client, ServerFrame(error=error)))
    assert shown(client) == ["error"]
