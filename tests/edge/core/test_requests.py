"""Requests of clients: forwarded once, bounded, rejected if malformed."""

from __future__ import annotations

import pytest
from trunkline.v1.frames import CLIENT_FRAMES
from trunkline_edge.core.connection import Connection, ConnectionState
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.native.handshake import CODECS

from tests.edge.core.core_harness import (
    ack,
    close,
    deliver,
    forwarded,
    heard,
    linked_core,
    open_all,
    opened,
    paused,
    resumed,
    say,
    send,
    signal,
)


def asked(core: EdgeCore, connection: Connection, count: int) -> None:
    for number in range(count):
        core.client_frames.received(connection, say(f"m{number}"))


def test_a_retry_of_a_request_under_way_is_not_forwarded_and_answered_once() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, say("m1"))
    core.client_frames.received(client, say("m1"))
    assert forwarded(core) == ["frame 1 m1"]
    assert heard(client) == []
    deliver(core, ack(client, "m1"))
    assert heard(client) == ["ack m1"]
    core.client_frames.received(client, say("m1"))
    assert forwarded(core) == ["frame 1 m1"]


def test_the_id_of_a_request_under_way_with_other_content_is_refused() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, say("m1", "one"))
    core.client_frames.received(client, say("m1", "two"))
    core.client_frames.received(client, b'{"type":"history","id":"m1"}')
    assert forwarded(core) == ["frame 1 m1"]
    assert heard(client) == ["error UNEXPECTED_FRAME"] * 2
    assert list(client.unanswered) == ["m1"]


def test_the_edge_handles_itself_what_the_contract_has_it_handle() -> None:
    own = {kind for kind, rule in CLIENT_FRAMES.items() if rule.handled_by_edge}
    assert set(linked_core().client_frames._handlers) == own


@pytest.mark.parametrize("kind", ["ack", "error", "subscribed", "unsubscribed", "history", "cancelled"])
def test_every_kind_of_answer_ends_a_request(kind: str) -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, say("m1"))
    answer = send(client)
    getattr(answer.send.frame, kind).id = "m1"
    deliver(core, answer)
    assert (client.unanswered, client.unanswered_bytes) == ({}, 0)


def test_a_client_is_held_at_its_bound_of_requests_and_released_by_an_answer() -> None:
    core = linked_core(unanswered=3)
    [client] = open_all(core, "a")
    asked(core, client, 2)
    assert not paused(core)
    asked(core, client, 3)
    assert paused(core) == {client}
    assert not resumed(core)
    deliver(core, ack(client, "m1"))
    assert resumed(core) == {client}
    assert not paused(core)
    assert not client.reading_paused


def test_a_client_is_held_at_its_bound_of_bytes() -> None:
    core = linked_core(unanswered_bytes=1000)
    [client] = open_all(core, "a")
    core.client_frames.received(client, say("m1", "x" * 2000))
    assert paused(core) == {client}
    deliver(core, ack(client, "m1"))
    assert resumed(core) == {client}


def test_signals_do_not_count_as_requests() -> None:
    core = linked_core(unanswered=2)
    [client] = open_all(core, "a")
    for _ in range(10):
        core.client_frames.received(client, signal())
    assert not paused(core)
    assert len(forwarded(core)) == 10


def test_a_full_uplink_holds_those_who_send_until_it_is_half_empty() -> None:
    core = linked_core(uplink_bytes=1000)
    sender, quiet = open_all(core)
    core.client_frames.received(sender, say("m1", "x" * 1200))
    assert paused(core) == {sender}
    assert not quiet.reading_paused
    deliver(core, ack(sender, "m1"))
    assert not resumed(core)
    forwarded(core)
    core.batch_sent()
    assert resumed(core) == {sender}


def test_a_client_held_for_both_reasons_waits_for_both() -> None:
    core = linked_core(uplink_bytes=1000, unanswered=1)
    [sender] = open_all(core, "a")
    core.client_frames.received(sender, say("m1", "x" * 1200))
    forwarded(core)
    core.batch_sent()
    assert not resumed(core)
    deliver(core, ack(sender, "m1"))
    assert resumed(core) == {sender}


def test_a_held_client_that_is_closed_is_read_again_for_its_closing_handshake() -> None:
    core = linked_core(unanswered=1)
    [client] = open_all(core, "a")
    asked(core, client, 1)
    core.effects.clear()
    deliver(core, close(client))
    assert resumed(core) == {client}
    assert client.unanswered == {}


def test_a_held_client_that_is_gone_is_in_no_set() -> None:
    core = linked_core(uplink_bytes=1, unanswered=1)
    [client] = open_all(core, "a")
    asked(core, client, 1)
    core.gone(client)
    forwarded(core)
    core.batch_sent()
    assert not core.throttle.waiting_for_uplink | core.dirty
    assert not resumed(core)


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\xfe", b"[]", b"1", b"{", b'{"type":"nope"}', b'{"type":"message","x":1}']
)
def test_what_cannot_be_read_is_answered_and_the_connection_goes_on(payload: bytes) -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, payload)
    core.client_frames.received(client, say("m1"))
    [error] = heard(client)
    assert error in ("error MALFORMED_FRAME", "error UNKNOWN_FRAME_TYPE")
    assert forwarded(core) == ["frame 1 m1"]
    assert (core.counts.frames_in, core.counts.frames_refused) == (2, 1)


def test_ping_and_disconnect_stay_in_the_edge() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, b'{"type":"ping","id":"p1"}')
    core.client_frames.received(client, b'{"type":"disconnect"}')
    core.client_frames.received(client, say("m1"))
    assert heard(client) == ["pong p1", "closing DISCONNECTED"]
    assert client.state is ConnectionState.CLOSING
    assert forwarded(core) == ["closed 1"]


def test_resume_is_refused_once_connected() -> None:
    core = linked_core()
    [client] = open_all(core, "a")
    core.client_frames.received(client, b'{"type":"resume","positions":[]}')
    assert heard(client) == ["error UNEXPECTED_FRAME"]
    assert forwarded(core) == []


def test_nothing_is_read_of_a_client_that_is_opening() -> None:
    core = linked_core()
    client = opened(core)
    core.client_frames.received(client, say("m1"))
    assert client.pending == []
    assert forwarded(core) == ["opened 1"]


def test_what_grows_on_the_link_is_counted_as_the_link_carries_it() -> None:
    core = linked_core(frame_bytes=1 << 20)
    [client] = open_all(core, "a")
    data = b"[" + b",".join([b"1"] * 1000) + b"]"
    core.client_frames.received(client, b'{"type":"signal","name":"n","data":{"x":' + data + b"}}")
    waiting = core.uplink.waiting_bytes
    frame = CODECS["trunkline.v1.json"].decode(b'{"type":"signal","name":"n","data":{"x":' + data + b"}}")
    assert waiting >= frame.ByteSize() > 4 * len(data)
