"""Resume cursors, for codecs that append them."""

from __future__ import annotations

from trunkline.v1.address_pb2 import Address
from trunkline.v1.edge_service_pb2 import RouterEntry
from trunkline.v1.message_pb2 import Message
from trunkline_edge.core.connection import Connection
from trunkline_edge.dialects.native.events import EVENTS

from tests.edge.core.core_harness import (
    close,
    connected,
    deliver,
    group,
    join,
    leave,
    linked_core,
    message,
    opened,
    publish,
    send,
    topic,
)
from tests.support.event_source import Event, EventReader

USERS = Address(tenant="t", user="u")


def entered(connection: Connection, seq: int = 0) -> RouterEntry:
    """Return the router's answer: the client resumes here in its group, and from the beginning as a user."""
    entry = connected(connection)
    for address, epoch in ((USERS, ""), (group("team"), "e")):
        place = entry.send.frame.connected.positions.add(address=address).position
        place.epoch, place.seq = epoch, seq if epoch else 0
    return entry


def users_topic() -> RouterEntry:
    entry = topic(2, "")
    entry.topic.address.CopyFrom(USERS)
    entry.topic.position.epoch = ""
    return entry


def missed(connection: Connection, seq: int) -> RouterEntry:
    entry = send(connection)
    entry.send.frame.message.CopyFrom(message("team", seq))
    return entry


def for_user(seq: int) -> Message:
    posted = message("team", seq)
    posted.address.CopyFrom(USERS)
    posted.position.epoch = "u"
    return posted


def written(connection: Connection) -> bytes:
    """Take the data that the runtime would write."""
    data, connection.pending = b"".join(connection.pending), []
    return connection.with_cursor(data)


def ids(data: bytes) -> list[tuple[str, str]]:
    return [(event.type, event.last_id) for event in EventReader().feed(data)]


def test_each_message_that_was_missed_comes_with_where_it_leads() -> None:
    core = linked_core()
    one = opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic(), entered(one, 3), missed(one, 4))
    assert ids(written(one)) == [("connected", "e.3~.0"), ("message", "e.4~.0")]
    deliver(core, missed(one, 5), join(one, 1, 2), publish(1, message("team", 6)))
    assert ids(written(one)) == [("message", "e.5~.0"), ("message", "e.6~.0")]


def test_an_open_message_that_is_told_again_does_not_take_it_back() -> None:
    core = linked_core()
    one = opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic(), entered(one, 5), missed(one, 2))
    assert ids(written(one)) == [("connected", "e.5~.0"), ("message", "e.5~.0")]
    assert written(one) == b""


def test_messages_that_are_written_together_have_one_mark_and_what_leads_nowhere_has_none() -> None:
    core = linked_core()
    one = opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic(), entered(one, 5), join(one, 1, 2))
    written(one)
    deliver(core, publish(1, message("team", 6)), publish(2, for_user(1)), publish(1, message("team", 7)))
    data = written(one)
    assert data.count(b"\nid: ") == 1
    assert data.endswith(b"\nid: e.7~u.1\n\n")
    signal = publish(1, Message())
    signal.publish.frame.signal.name = "typing"
    deliver(core, signal)
    assert b"id: " not in written(one)
    core.sessions.send_heartbeat(one)
    assert written(one) == b": ping\n\n"


def test_the_last_frame_is_marked_with_what_came_before_it_and_with_nothing_that_came_after() -> None:
    core = linked_core()
    one, other = opened(core, EVENTS, "u"), opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic())
    for each in (one, other):
        deliver(core, entered(each, 5), join(each, 1, 2))
        written(each)
    deliver(core, publish(1, message("team", 6)), close(one), publish(1, message("team", 7)))
    assert ids(written(one))[-1] == ("closing", "e.6~.0")
    assert ids(written(other))[-1] == ("message", "e.7~.0")


def test_who_is_closed_as_slow_stands_where_the_last_mark_that_it_was_written_says() -> None:
    core = linked_core()
    one = opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic(), entered(one, 5), join(one, 1, 2))
    reader = EventReader()
    deliver(core, publish(1, message("team", 6)))
    reader.feed(written(one))
    deliver(core, publish(1, message("team", 7)))
    one.pending.clear()
    core.backpressure.close_slow(one)
    [event] = reader.feed(written(one))
    assert event == Event("closing", event.data, "e.6~.0")


def test_who_is_closed_as_slow_while_it_arrives_is_marked_no_further() -> None:
    core = linked_core()
    one = opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic(), entered(one, 3))
    reader = EventReader()
    reader.feed(written(one))
    deliver(core, missed(one, 4))
    one.pending.clear()
    core.backpressure.close_slow(one)
    [event] = reader.feed(written(one))
    assert event.last_id == "e.3~.0"


def test_topics_that_were_left_keep_the_position_that_the_client_received() -> None:
    core = linked_core()
    one, other = opened(core, EVENTS, "u"), opened(core, EVENTS, "u")
    deliver(core, topic(1, "team", 5), users_topic())
    for each in (one, other):
        deliver(core, entered(each, 5), join(each, 1, 2))
        written(each)
    deliver(core, publish(1, message("team", 6)), leave(one, 1), publish(1, message("team", 7)))
    assert ids(written(one)) == [("message", "e.6~.0")]
    assert ids(written(other))[-1] == ("message", "e.7~.0")
    deliver(core, publish(2, for_user(1)))
    assert ids(written(one)) == [("message", "e.6~u.1")]
    deliver(core, leave(one, 2), publish(1, message("team", 8)), publish(2, for_user(2)))
    core.sessions.send_heartbeat(one)
    assert written(one) == b": ping\n\n"
    deliver(core, topic(1, "team"), missed(one, 7), join(one, 1), publish(1, message("team", 9)))
    assert ids(written(one))[-1] == ("message", "e.9~u.1")
