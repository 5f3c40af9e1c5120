"""The dialect of event streams: form of events, and resuming from an id."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline_edge.core.topic_head import TopicHead
from trunkline_edge.dialects.dialect import ConnectRequest
from trunkline_edge.dialects.native.events import EVENTS, RETRY_MS, connect
from trunkline_edge.dialects.native.handshake import DEFAULT
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.edge.dialects.filled_messages import filled
from tests.support.event_source import EventReader

QUERY = {"tenant": "t", "agent": "a", "platform": "web", "conversation": "group:team", "user": "u"}

epochs = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", max_size=64)
stands = st.tuples(epochs, st.integers(0, 2**64 - 1))


def opened(last_id: str = "", **more: str) -> ConnectionOpened:
    headers = {"last-event-id": last_id} if last_id else {}
    query = [(name, value) for name, value in (QUERY | more).items() if value]
    return connect(ConnectRequest({}, query, headers, None, TenantPolicies())).opened


def test_a_frame_is_an_event_of_its_type_with_the_json_that_websockets_get() -> None:
    frame = ServerFrame()
    frame.delta.message_id, frame.delta.text = "m", "a\r\nb\nc\rd\u2028e: \0"
    json_text = rb'{"type":"delta","message_id":"m","text":"a\r\nb\nc\rd\xe2\x80\xa8e: \u0000"}'.replace(
        rb"\xe2\x80\xa8", "\u2028".encode()
    )
    assert EVENTS.encode(frame) == b"event: delta\ndata: " + json_text + b"\n\n"


@pytest.mark.parametrize("frame", filled(ServerFrame.DESCRIPTOR), ids=lambda frame: frame.WhichOneof("frame"))
def test_any_frame_is_one_event_however_its_bytes_are_cut(frame: ServerFrame) -> None:
    reader = EventReader()
    written = EVENTS.with_cursor(EVENTS.encode(frame), [b"e.1", b".0"])
    [event] = [event for byte in written for event in reader.feed(bytes((byte,)))]
    assert event.type == frame.WhichOneof("frame")
    assert event.data.encode() == DEFAULT.encode(frame)
    assert event.last_id == "e.1~.0"


def test_a_frame_that_is_newer_than_this_edge_is_an_event_of_an_unknown_type() -> None:
    assert EVENTS.encode(ServerFrame()) == b'event: unknown\ndata: {"type":"unknown"}\n\n'


def test_clients_get_different_reconnect_delays() -> None:
    received = set()
    for number in range(100):
        frame, reader = ServerFrame(), EventReader()
        frame.connected.connection_id = f"c{number}"
        reader.feed(EVENTS.encode(frame))
        assert reader.retry_ms in RETRY_MS
        received.add(reader.retry_ms)
    assert len(received) > 80


def test_the_closing_frame_sets_the_reconnect_delay() -> None:
    frame, reader = ServerFrame(), EventReader()
    frame.closing.reconnect_after_ms = 500
    reader.feed(EVENTS.encode(frame))
    assert reader.retry_ms == 500


def test_a_heartbeat_is_a_comment() -> None:
    reader = EventReader()
    assert reader.feed(EVENTS.heartbeat()) == []
    assert reader.comments == 1


@given(st.lists(stands, min_size=5, max_size=5), st.sampled_from(["header", "query"]))
def test_an_id_is_read_back_as_the_positions_it_was_made_of(where: list[tuple[str, int]], by: str) -> None:
    reader = EventReader()
    reader.feed(EVENTS.with_cursor(b"data: x\n\n", [TopicHead(b"", *stand).cursor_token for stand in where]))
    found = opened(reader.last_id) if by == "header" else opened(resume=reader.last_id)
    assert [(each.position.epoch, each.position.seq) for each in found.resume.positions] == where
    topics = [each.address for each in found.resume.positions]
    assert [(a.agent, a.platform, a.conversation.id, a.user) for a in topics] == [
        ("", "", "", ""),
        ("a", "", "", ""),
        ("a", "web", "", ""),
        ("a", "web", "team", ""),
        ("", "", "", "u"),
    ]
    assert {a.tenant for a in topics} == {"t"}


def test_an_id_has_as_many_positions_as_the_connection_hears_topics() -> None:
    assert len(opened("e.1~e.2~e.3", conversation="", user="").resume.positions) == 3
    assert len(opened("e.1~e.2~e.3~e.4", user="").resume.positions) == 4


@pytest.mark.parametrize(
    "last_id",
    [
        "x",
        "1.1",
        "e.1~e.2~e.3~e.4",
        "e.1~e.2~e.3~e.4~e.5~e.6",
        "e.1~e.2~e.3~e.4~e.x",
        "e.1~e.2~e.3~e.4~5",
        "e.1~e.2~e.3~e.4~e.-5",
        f"e.1~e.2~e.3~e.4~e.{2**64}",
        "e.1~e.2~e.3~e.4~e.²",
        f"e.1~e.2~e.3~e.4~{'e' * 65}.1",
    ],
)
def test_an_id_that_is_none_of_this_address_is_refused(last_id: str) -> None:
    with pytest.raises(Refused) as refused:
        opened(last_id)
    assert refused.value.entry.code == "INVALID_ADDRESS"


@given(st.text())
def test_whatever_is_sent_as_an_id_is_read_or_refused(last_id: str) -> None:
    with suppress(Refused):
        opened(last_id)


def test_the_last_event_id_is_newer_than_the_url() -> None:
    found = opened("e.1~e.2~e.3~e.4~e.5", resume="delivered")
    assert found.resume.positions
    assert not found.resume.delivered
    assert opened(resume="delivered").resume.delivered


def test_who_comes_from_a_websocket_goes_on_from_its_positions() -> None:
    array = [{"address": {"tenant": "t"}, "position": {"epoch": "e", "seq": 7}}]
    text = base64.urlsafe_b64encode(json.dumps(array).encode()).decode().rstrip("=")
    [position] = opened(resume=text).resume.positions
    assert (position.address.tenant, position.position.seq) == ("t", 7)
