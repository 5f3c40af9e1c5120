"""Requests about replies, and topic heads moved by entries other than messages."""

from __future__ import annotations

import json

import pytest
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.frame_pb2 import AckFrame, CancelledFrame, ServerFrame
from trunkline.v1.message_pb2 import CHANGE_KIND_EDITED
from trunkline_edge.core.edge import EdgeCore

from tests.edge.core.core_harness import (
    connected,
    deliver,
    delta,
    ended,
    forwarded,
    heard,
    join,
    linked_core,
    open_all,
    open_message,
    opened,
    publish,
    send,
    topic,
)

REQUESTS = {
    "cancel": {"type": "cancel", "id": "x", "client_id": "m1"},
    "edit": {"type": "edit", "id": "x", "message_id": "a", "parts": [{"type": "text", "text": "b"}]},
    "recall": {"type": "recall", "id": "x", "message_id": "a"},
}
ANSWERS = {
    "cancel": ServerFrame(cancelled=CancelledFrame(id="x")),
    "edit": ServerFrame(ack=AckFrame(id="x", message_id="a")),
    "recall": ServerFrame(ack=AckFrame(id="x", message_id="a")),
}


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


def at(core: EdgeCore) -> list[str]:
    """Return the topics' positions, as a new link would declare them."""
    core.link_lost()
    core.linked()
    return [text for text in forwarded(core) if text.startswith("topic")]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_is_kept_until_it_is_answered(core: EdgeCore, kind: str) -> None:
    [client] = open_all(core, "a")
    core.client_frames.received(client, json.dumps(REQUESTS[kind]).encode())
    assert forwarded(core) == [f"frame {client.number} x"]
    core.link_lost()
    core.linked()
    assert forwarded(core)[-1] == f"frame {client.number} x"
    deliver(core, send(client, ANSWERS[kind]))
    assert not client.unanswered
    assert heard(client) == [f"{'cancelled' if kind == 'cancel' else 'ack'} x"]


def test_what_a_client_was_given_is_passed_on_and_not_kept(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    core.client_frames.received(client, b'{"type":"delivered","position":{"epoch":"e","seq":3}}')
    assert forwarded(core) == [f"frame {client.number} delivered"]
    assert not client.unanswered


def read_up_to(seq: int, kept: bool) -> RouterEntry:
    entry = RouterEntry()
    entry.publish.topic = 1
    frame = entry.publish.frame.read
    frame.position.epoch, frame.position.seq = "e", 1
    if kept:
        frame.at.epoch, frame.at.seq = "e", seq
    return entry


@pytest.mark.parametrize("replayed", [False, True])
def test_every_kind_of_entry_moves_the_topic_on(core: EdgeCore, replayed: bool) -> None:
    open_all(core, "a")
    seen = []
    for entry in (
        publish(1, open_message("team", seq=3)),
        ended(1, seq=4),
        ended(1, seq=5, kind=CHANGE_KIND_EDITED),
        read_up_to(6, kept=True),
        read_up_to(9, kept=False),
    ):
        entry.publish.replayed = replayed
        deliver(core, entry)
        [known] = core.fanout._topics.values()
        seen.append(known.head.seq)
    assert seen == [3, 4, 5, 6, 6]
    assert at(core) == ["topic team@6"]


def test_a_snapshot_does_not_take_the_topic_back(core: EdgeCore) -> None:
    open_all(core, "a")
    deliver(core, publish(1, open_message("team", seq=3)), ended(1, ident="other", seq=8))
    deliver(core, publish(1, open_message("team", next_index=5, seq=3), replayed=True))
    assert at(core) == ["topic team@8"]


def test_the_ack_of_an_edit_moves_the_topic_on(core: EdgeCore) -> None:
    [client] = open_all(core, "a")
    entry = send(client, ANSWERS["edit"])
    entry.send.topic = 1
    entry.send.frame.ack.position.epoch, entry.send.frame.ack.position.seq = "e", 4
    deliver(core, entry)
    assert at(core) == ["topic team@4"]


def test_a_message_is_forgotten_with_its_end_with_its_topic_and_with_its_last_listener(
    core: EdgeCore,
) -> None:
    first, second = open_all(core)
    [known] = core.fanout._topics.values()
    deliver(core, delta(1, 0, ident="r"), delta(1, 0, ident="s"), publish(1, open_message("team", "q")))
    assert known.open_messages == {"r": 1, "s": 1, "q": 0}
    whole = open_message("team", "s")
    whole.ClearField("state")
    deliver(core, ended(1, "r"), publish(1, whole))
    assert known.open_messages == {"q": 0}
    core.gone(first)
    assert known.open_messages == {"q": 0}
    core.gone(second)
    assert known.open_messages == {}
    deliver(core, delta(1, 1, ident="q"))
    assert known.open_messages == {}


def test_what_was_open_in_a_log_that_was_begun_anew_is_forgotten(core: EdgeCore) -> None:
    open_all(core, "a")
    [known] = core.fanout._topics.values()
    deliver(core, publish(1, open_message("team", "old", seq=7)))
    anew = open_message("team", "new", seq=1)
    anew.position.epoch = "f"
    deliver(core, publish(1, anew))
    assert (known.head.epoch, known.head.seq, known.open_messages) == ("f", 1, {"new": 0})


def test_the_window_is_told_and_a_new_link_does_not_change_it(core: EdgeCore) -> None:
    client = opened(core, rollup_ms=120)
    deliver(core, topic(1, "team"), connected(client), join(client, 1))
    assert b'"rollup_ms":120}' in b"".join(client.pending)
    client.pending.clear()
    core.link_lost()
    core.linked()
    deliver(core, topic(2, "team"), join(client, 2), delta(2, 0), now=5)
    assert core.next_due == pytest.approx(5.13)
