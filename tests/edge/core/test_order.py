"""Order of the frames that a connection receives."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline_edge.core.connection import ConnectionState
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.effects import RejectConnection

from tests.edge.core.core_harness import (
    PROTO,
    ack,
    batch,
    close,
    closings,
    connected,
    deliver,
    forwarded,
    heard,
    join,
    leave,
    linked_core,
    message,
    open_all,
    opened,
    publish,
    say,
    topic,
)


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


def test_connected_comes_before_what_the_topics_bring(core: EdgeCore) -> None:
    listener, newcomer = open_all(core, "a")[0], opened(core)
    deliver(
        core,
        publish(1, message("team", 1)),
        connected(newcomer),
        join(newcomer, 1),
        publish(1, message("team", 2)),
    )
    assert heard(newcomer) == ["connected", "message 2"]
    assert heard(listener) == ["message 1", "message 2"]


def test_an_ack_comes_before_the_messages_after_it_and_after_those_before_it(core: EdgeCore) -> None:
    author, other = open_all(core)
    core.client_frames.received(author, say("m1"))
    deliver(
        core,
        publish(1, message("team", 1)),
        ack(author, "m1"),
        publish(1, message("team", 2), but=author),
        publish(1, message("team", 3)),
    )
    assert heard(author) == ["message 1", "ack m1", "message 3"]
    assert heard(other) == ["message 1", "message 2", "message 3"]


def test_a_frame_for_one_does_not_split_the_run_of_topics_it_does_not_hear(core: EdgeCore) -> None:
    listener, *_ = open_all(core, "a")
    stranger = opened(core)
    deliver(core, publish(1, message("team", 1)), connected(stranger), publish(1, message("team", 2)))
    assert len(listener.pending) == 1
    assert heard(listener) == ["message 1", "message 2"]


def test_who_leaves_has_heard_what_came_before(core: EdgeCore) -> None:
    leaver, stayer = open_all(core)
    deliver(core, publish(1, message("team", 1)), leave(leaver, 1), publish(1, message("team", 2)))
    assert heard(leaver) == ["message 1"]
    assert heard(stayer) == ["message 1", "message 2"]


def test_each_topic_stays_in_order_whatever_is_between(core: EdgeCore) -> None:
    [listener] = open_all(core, "a")
    deliver(core, topic(2, "other"), join(listener, 2))
    deliver(
        core, *(publish(n, message("team" if n == 1 else "other", seq)) for seq in (1, 2) for n in (1, 2))
    )
    assert heard(listener) == ["message 1", "message 2"] * 2


def test_one_codec_does_not_change_what_another_hears(core: EdgeCore) -> None:
    json, proto = *open_all(core, "a"), opened(core, PROTO)
    deliver(core, connected(proto), join(proto, 1))
    assert heard(proto) == ["connected"]
    deliver(core, publish(1, message("team", 1)), publish(1, message("team", 2)))
    assert heard(json) == heard(proto) == ["message 1", "message 2"]


def test_nothing_follows_closing(core: EdgeCore) -> None:
    closed, other = open_all(core)
    deliver(
        core,
        publish(1, message("team", 1)),
        close(closed),
        publish(1, message("team", 2)),
        ack(closed, "m1"),
        join(closed, 1),
        close(closed),
    )
    core.client_frames.received(closed, b'{"type":"ping","id":"p"}')
    core.sessions.close(closed, catalogue.RESTARTING.refused())
    assert heard(closed) == ["message 1", "closing CLOSED_BY_BACKEND"]
    assert heard(other) == ["message 1", "message 2"]
    assert [one.code for one in closings(core, closed)] == [4501]
    core.gone(closed)
    assert (core.counts.opened, core.counts.closed) == (2, 1)


def test_a_refused_connection_hears_closing_first(core: EdgeCore) -> None:
    refused = opened(core)
    deliver(core, close(refused, 4504, "UNKNOWN_TENANT"))
    [rejection] = [one for one in core.effects if isinstance(one, RejectConnection)]
    assert (rejection.connection, rejection.closing.reason) == (refused, "UNKNOWN_TENANT")
    refused.pending.append(rejection.data)
    assert heard(refused) == ["closing UNKNOWN_TENANT"]
    core.gone(refused)
    assert (core.sessions.opening, core.counts.opened, core.counts.closed) == (0, 0, 0)


def test_what_comes_for_a_client_that_is_gone_is_dropped(core: EdgeCore) -> None:
    gone, other = open_all(core)
    core.gone(gone)
    core.gone(gone)
    deliver(core, ack(gone, "m1"), join(gone, 1), leave(gone, 1), close(gone), publish(1, message("team", 1)))
    assert forwarded(core) == [f"closed {gone.number}"]
    assert gone.pending == []
    assert gone not in core.dirty
    assert heard(other) == ["message 1"]
    assert (core.counts.opened, core.counts.closed) == (2, 1)


def test_a_forgotten_topic_has_given_out_its_run(core: EdgeCore) -> None:
    [listener] = open_all(core, "a")
    entry = batch().entries.add()
    entry.forget.topic = 1
    deliver(core, publish(1, message("team", 1)), leave(listener, 1), entry)
    deliver(core, publish(1, message("team", 2)))
    assert heard(listener) == ["message 1"]


def test_a_client_that_leaves_while_opening_is_not_counted_as_accepted(core: EdgeCore) -> None:
    client = opened(core)
    core.gone(client)
    assert client.state is ConnectionState.CLOSING
    assert (core.sessions.opening, core.counts.opened, core.counts.closed) == (0, 0, 0)
    assert forwarded(core) == ["opened 1", "closed 1"]


def test_what_the_client_may_send_is_told_with_connected(core: EdgeCore) -> None:
    client = opened(core)
    entry = connected(client)
    entry.send.frame.connected.limits.conversations = 7
    deliver(core, entry)
    [payload] = client.pending
    assert b'"limits":{"frame_bytes":1048576,"conversations":7,"unanswered":64}' in payload
    assert b'"heartbeat_s":25' in payload


def test_leaving_one_topic_loses_nothing_of_another(core: EdgeCore) -> None:
    listener = open_all(core, "a")[0]
    deliver(core, topic(2, "other"), join(listener, 2))
    deliver(
        core,
        publish(1, message("team", 1)),
        publish(2, message("other", 2)),
        leave(listener, 2),
        publish(2, message("other", 3)),
        publish(1, message("team", 4)),
    )
    assert sorted(heard(listener)) == ["message 1", "message 2", "message 4"]


def test_messages_of_two_topics_stay_in_order_within_each_between_the_frames_of_one(core: EdgeCore) -> None:
    [listener] = open_all(core, "a")
    newcomer = opened(core)
    deliver(
        core,
        topic(2, "other"),
        join(listener, 2),
        publish(2, message("other", 1)),
        publish(1, message("team", 2)),
        publish(2, message("other", 3)),
        publish(1, message("team", 4)),
        ack(listener, "m1"),
        publish(1, message("team", 5)),
        connected(newcomer),
        join(newcomer, 1),
        join(newcomer, 2),
        publish(2, message("other", 6)),
    )
    got = heard(listener)
    assert sorted(got[:4]) == [f"message {seq}" for seq in range(1, 5)]
    assert got[4] == "ack m1"
    assert [text for text in got if text[-1] in "136"] == ["message 1", "message 3", "ack m1", "message 6"]
    assert [text for text in got if text[-1] in "245"] == ["message 2", "message 4", "message 5"]
    assert heard(newcomer) == ["connected", "message 6"]
