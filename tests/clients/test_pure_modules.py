"""Cursor, inbox, heartbeat, close codes and builders: pure, without an event loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, Conversation, Position
from trunkline.v1.frame_pb2 import ClosingFrame
from trunkline_client import Closed, address, address_name, conversation, conversation_name, text
from trunkline_client.builders import group, parts
from trunkline_client.close_codes import Reconnect, interpret_close
from trunkline_client.cursor import MAX_AHEAD, Arrival, Cursor
from trunkline_client.edge_socket import connect_url
from trunkline_client.heartbeat import HeartbeatAction, HeartbeatStep, next_heartbeat
from trunkline_client.inbox import Inbox

from tests.clients.scripted_edge import ALICE, TEAM, at, message


@given(st.permutations(range(1, 9)))
def test_a_cursor_with_enough_in_flight_accepts_any_order(order: list[int]) -> None:
    cursor = Cursor(Position())
    for seq in order:
        assert cursor.record(at(seq), own_in_flight=8) is Arrival.NEW
        assert cursor.record(at(seq), own_in_flight=8) is Arrival.REPEATED
    assert (cursor.position, cursor.missing) == (at(8), 0)


def test_a_cursor_tolerates_no_more_holes_than_messages_in_flight() -> None:
    cursor = Cursor(at(1))
    assert cursor.record(at(4), own_in_flight=1) is Arrival.GAP
    assert cursor.record(at(3), own_in_flight=1) is Arrival.NEW
    assert cursor.missing == 1
    assert cursor.record(at(4), own_in_flight=1) is Arrival.NEW
    assert cursor.position == at(1)


def test_a_cursor_is_bounded_in_messages_beyond_a_hole() -> None:
    cursor = Cursor(at(1))
    for seq in range(3, 3 + MAX_AHEAD):
        assert cursor.record(at(seq), own_in_flight=1) is Arrival.NEW
    assert cursor.record(at(3 + MAX_AHEAD), own_in_flight=1) is Arrival.GAP


def test_an_inbox_is_full_by_items_or_by_bytes() -> None:
    by_items, by_bytes = Inbox(2, 1000), Inbox(1000, 100)
    by_items.put(message(1), 10)
    by_bytes.put(message(1), 99)
    assert not by_items.is_full
    assert not by_bytes.is_full
    by_items.put(message(2), 10)
    by_bytes.put(message(2), 1)
    assert by_items.is_full
    assert by_bytes.is_full
    by_items.take()
    by_bytes.take()
    assert not by_items.is_full
    assert not by_bytes.is_full


def test_positions_of_an_inbox_follow_the_events_taken() -> None:
    inbox = Inbox(10, 1000)
    inbox.set_position(ALICE, at(1))
    inbox.put(message(2), 10)
    inbox.set_position(ALICE, at(2))
    inbox.set_position(ALICE, at(3))  # an ack of our own, which is no event
    inbox.put(message(8, to=TEAM), 10)
    inbox.set_position(TEAM, at(8))
    assert [each.position.seq for each in inbox.positions] == [1]
    inbox.take()
    assert [each.position.seq for each in inbox.positions] == [3]
    inbox.forget(ALICE)
    inbox.take()
    assert [each.address for each in inbox.positions] == [TEAM]
    with pytest.raises(IndexError):
        inbox.take()


def test_a_heartbeat_pings_once_per_interval_and_drops_after_two() -> None:
    assert next_heartbeat(0, heard_at=0, pinged_at=0, interval_s=20) == HeartbeatStep(
        HeartbeatAction.WAIT, 20
    )
    assert next_heartbeat(20, heard_at=0, pinged_at=0, interval_s=20) == HeartbeatStep(
        HeartbeatAction.PING, 20
    )
    assert next_heartbeat(20, heard_at=0, pinged_at=20, interval_s=20) == HeartbeatStep(
        HeartbeatAction.WAIT, 20
    )
    assert next_heartbeat(30, heard_at=25, pinged_at=20, interval_s=20) == HeartbeatStep(
        HeartbeatAction.WAIT, 10
    )
    assert next_heartbeat(40, heard_at=0, pinged_at=20, interval_s=20) == HeartbeatStep(
        HeartbeatAction.DROP, 0
    )


@given(st.integers(min_value=4000, max_value=4999))
def test_the_range_of_a_close_code_decides_whether_to_reconnect(code: int) -> None:
    assert isinstance(interpret_close(code, "", None, can_refresh_token=True), Reconnect) is (code < 4500)


def test_a_closing_frame_sets_the_delay_and_the_reason() -> None:
    closing = ClosingFrame(code=1012, reason="RESTARTING", message="Restarting", reconnect_after_ms=500)
    assert interpret_close(1012, "", closing, can_refresh_token=False) == Reconnect(0.5, "Restarting")
    closed = interpret_close(1009, "", None, can_refresh_token=False)
    assert isinstance(closed, Closed)
    assert str(closed) == "A frame is larger than the other end accepts (1009)"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h:1", "ws://h:1/v1/connect?tenant=t&conversation=person:a%20b"),
        ("ws://h:1/", "ws://h:1/v1/connect?tenant=t&conversation=person:a%20b"),
        ("wss://h/chat?x=1", "wss://h/chat?x=1&tenant=t&conversation=person:a%20b"),
    ],
)
def test_a_url_gets_a_default_path_and_the_non_empty_query(url: str, expected: str) -> None:
    assert connect_url(url, {"tenant": "t", "user": "", "conversation": "person:a b"}) == expected


def test_conversations_are_written_with_their_kind() -> None:
    team = Conversation(kind=CONVERSATION_KIND_GROUP, id="team")
    assert conversation("group:team") == conversation(team) == group("team") == group("group:team") == team
    assert conversation_name(team) == "group:team"
    for wrong in ("team", "room:team", "person:", ""):
        with pytest.raises(ValueError, match="is written"):
            conversation(wrong)
    with pytest.raises(ValueError, match="only groups"):
        group("person:alice")


def test_an_address_has_one_target() -> None:
    assert address_name(ALICE) == "demo / echo / web / person:alice"
    assert address_name(address(tenant="t", user="u")) == "t / user u"
    assert address(tenant="t", connection="c").connection == "c"
    with pytest.raises(ValueError, match="at most one"):
        address(tenant="t", user="u", connection="c")


def test_content_is_text_or_parts() -> None:
    (part,) = text("hello")
    assert parts("hello") == parts(part) == parts([part]) == [part]
