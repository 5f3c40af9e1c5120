"""Signals with a time to live, as the edge keeps and ends them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.frame_pb2 import SIGNAL_END_LEFT, SIGNAL_END_STOPPED, ServerFrame, SignalEnd
from trunkline_edge.core import topic_signals
from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    connected,
    deliver,
    delta,
    heard,
    join,
    leave,
    linked_core,
    open_all,
    opened,
    parsed,
    streaming,
    taken,
    topic,
)


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


def signalled(
    user: str = "zoe",
    ttl_ms: int = 5000,
    end: SignalEnd = 0,
    name: str = "typing",
    but: Connection | None = None,
) -> RouterEntry:
    """Return the entry that publishes a signal in topic 1."""
    entry = RouterEntry()
    entry.publish.topic = 1
    signal = entry.publish.frame.signal
    signal.name, signal.user, signal.ttl_ms, signal.end = name, user, ttl_ms, end
    signal.conversation.id = "team"
    if but is not None:
        setattr(entry.publish, "except", but.number)
    return entry


def signals(connection: Connection) -> list[tuple[str, int | str]]:
    """Take a connection's signals: the user of each, with its time to live or its end."""
    data, connection.pending = b"".join(connection.pending), []
    found = []
    for frame in parsed(data):
        if connection.codec is PROTO:
            signal = ServerFrame.FromString(frame.data).signal
            end = SignalEnd.Name(signal.end).removeprefix("SIGNAL_END_").lower()
            found.append((signal.user, end if signal.end else signal.ttl_ms))
        else:
            fields: dict[str, Any] = json.loads(frame.data)
            if fields["type"] == "signal":
                found.append((fields["user"], fields.get("end") or fields.get("ttl_ms", 0)))
    return found


@pytest.mark.parametrize("codec", [JSON, PROTO])
def test_subscribers_are_sent_the_end_when_the_time_has_passed(core: EdgeCore, codec: Any) -> None:
    [client] = open_all(core, "a", codec)
    deliver(core, signalled(), now=10)
    assert signals(client) == [("zoe", 5000)]
    assert core.next_due == 15
    core.time_passed(14.9)
    assert signals(client) == []
    core.time_passed(15)
    assert signals(client) == [("zoe", "expired")]
    assert core.next_due is None
    assert client in core.dirty


def test_a_repeated_signal_ends_once_and_later(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(), now=0)
    deliver(core, signalled(), now=3)
    core.time_passed(5)
    assert signals(client) == [("zoe", 5000)] * 2
    core.time_passed(8)
    assert signals(client) == [("zoe", "expired")]


def test_an_early_end_is_delivered_once_and_an_unknown_one_is_not(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(), signalled(end=SIGNAL_END_LEFT, ttl_ms=0), now=0)
    deliver(core, signalled(end=SIGNAL_END_STOPPED, ttl_ms=0), now=1)
    core.time_passed(9)
    assert signals(client) == [("zoe", 5000), ("zoe", "left")]


def test_the_sender_is_sent_neither_its_signal_nor_its_end(core: EdgeCore) -> None:
    sender, other = open_all(core, "ab")
    deliver(core, signalled("a", but=sender), now=0)
    core.time_passed(5)
    assert signals(sender) == []
    assert signals(other) == [("a", 5000), ("a", "expired")]


def test_a_device_that_was_sent_the_signal_by_another_of_its_user_is_sent_the_end(core: EdgeCore) -> None:
    phone, laptop = open_all(core, "aa")
    deliver(core, signalled("a", but=phone), now=0)
    deliver(core, signalled("a", but=laptop), now=1)
    core.time_passed(6)
    assert signals(phone) == [("a", 5000), ("a", "expired")]


def test_one_that_joins_later_is_sent_what_still_lives(core: EdgeCore) -> None:
    [sender] = open_all(core, "a")
    deliver(core, signalled(), signalled("yan", ttl_ms=1000), signalled("a", but=sender), now=0)
    core.time_passed(1)
    late = opened(core, user="c")
    deliver(core, connected(late), join(late, 1), now=2)
    assert signals(late) == [("zoe", 3000), ("a", 3000)]
    core.time_passed(5)
    assert signals(late) == [("zoe", "expired"), ("a", "expired")]
    # A connection that left is sent nothing, and everything when it joins again.
    deliver(core, signalled(), leave(late, 1), now=6)
    signals(late)
    deliver(core, join(late, 1), now=7)
    assert signals(late) == [("zoe", 4000)]


def test_the_first_that_joins_is_sent_what_came_with_the_topic(core: EdgeCore) -> None:
    first = opened(core, user="a")
    deliver(core, connected(first), topic(1, "team"), signalled(), join(first, 1), now=0)
    assert signals(first) == [("zoe", 5000)]


def test_a_new_router_is_sent_what_clients_of_the_edge_have_sent(core: EdgeCore) -> None:
    sender, gone = open_all(core, "ab")
    deliver(
        core,
        signalled("a", but=sender),
        signalled("a", but=sender, name="short", ttl_ms=1000),
        signalled("b", but=gone),
        signalled("zoe"),
    )
    core.link_lost()
    core.gone(gone)
    core.linked(now=2)
    entries = [entry.frame for one in taken(core.uplink) for entry in one.entries if entry.HasField("frame")]
    assert [(one.connection, one.frame.signal.ttl_ms) for one in entries] == [(sender.number, 3000)]
    assert entries[0].frame.signal.conversation.id == "team"


def test_what_nobody_publishes_again_on_a_new_link_ends_soon(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled("zoe", 60_000), signalled("yan", 60_000), signalled("xia", 1000), now=0)
    core.link_lost()
    core.linked(now=0.5)
    deliver(core, topic(1, "team"), join(client, 1), signalled("yan", 59_000), now=0.6)
    core.time_passed(1)
    core.time_passed(5.5)
    assert signals(client)[3:] == [("yan", 59_000), ("xia", "expired"), ("zoe", "expired")]
    core.time_passed(59)
    assert signals(client) == []
    core.time_passed(59.6)
    assert signals(client) == [("yan", "expired")]


def test_signals_end_although_the_router_has_forgotten_them(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(), now=0)
    core.link_lost()
    core.linked()
    # A new router numbers the topic, and knows no signal.
    deliver(core, topic(1, "team"), join(client, 1), now=2)
    core.time_passed(5)
    assert signals(client) == [("zoe", 5000), ("zoe", "expired")]


def test_signals_end_while_there_is_no_link(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(), now=0)
    core.link_lost()
    core.time_passed(5)
    assert signals(client) == [("zoe", 5000), ("zoe", "expired")]


def test_deltas_come_before_the_end(core: EdgeCore) -> None:
    [client] = streaming(core)
    deliver(core, signalled(ttl_ms=10), now=0)
    deliver(core, delta(1, 0), now=0.01)
    core.fanout.end_due_signals(1)
    assert heard(client) == ["signal", "+0 ", "signal"]


def test_a_topic_that_is_forgotten_leaves_nothing(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(), now=0)
    core.gone(client)
    deliver(core, _forgotten(1), now=1)
    assert len(core.fanout.topic_signals) == 0
    [client] = open_all(core, "a")
    deliver(core, signalled(), now=2)
    core.gone(client)
    core.link_lost()
    core.linked()
    assert len(core.fanout.topic_signals) == 0
    assert core.fanout.topic_signals._bytes == 0


def _forgotten(number: int) -> RouterEntry:
    entry = RouterEntry()
    entry.forget.topic = number
    return entry


@pytest.mark.parametrize(("bound", "limit"), [("MAX_SIGNALS", 2), ("MAX_BYTES", 40)])
def test_beyond_the_bound_the_signal_due_first_ends_early(
    core: EdgeCore, bound: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_signals, bound, limit)
    [client] = open_all(core, "a")
    deliver(core, signalled("long", 9000), signalled("short", 1000), signalled("new"), now=0)
    got = signals(client)
    assert got == [("long", 9000), ("short", 1000), ("short", "expired"), ("new", 5000)]


def test_a_signal_without_time_to_live_is_not_kept(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    deliver(core, signalled(ttl_ms=0), now=0)
    assert signals(client) == [("zoe", 0)]
    assert core.next_due is None
    assert len(core.fanout.topic_signals) == 0
