"""The core's services to dialects: direct replies, ids, echo, and silent frames."""

from __future__ import annotations

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame, MessageFrame, SignalFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    CHANGE_KIND_RECALLED,
)
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.codec import Framing, StreamingMode

from tests.edge.core.core_harness import (
    ack,
    closings,
    connected,
    deliver,
    delta,
    ended,
    forwarded,
    group,
    join,
    linked_core,
    message,
    open_all,
    open_message,
    opened,
    publish,
    taken,
    topic,
)
from tests.edge.core.dialect_harness import MESSAGE, PING, dialect, shown
from tests.edge.core.snapshot_codec import ANSWER, ASK, IGNORED, SAY_NOTHING, Shown


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


# Silent frames


def test_a_frame_that_has_no_words_costs_nothing(core: EdgeCore) -> None:
    mute = Shown(silent=frozenset({"message", "pong", "signal"}))
    client, other = open_all(core, "ab", mute)
    signal = publish(1, message("team", 2))
    signal.publish.frame.signal.CopyFrom(SignalFrame(name="typing"))
    before = core.counts.deliveries
    core.dirty.clear()
    deliver(core, publish(1, message("team", 1)), signal, publish(1, open_message("team"), but=other))
    deliver(core, delta(1, 0))
    deliver(core, ended(1))
    assert (client.pending, other.pending, core.counts.deliveries) == ([], [], before)
    core.client_frames.received(client, PING)
    assert client.pending == []
    deliver(
        core, signal, publish(1, message("team", 4)), ended(1, kind=CHANGE_KIND_RECALLED), ack(client, "m")
    )
    assert shown(client) == [f"change {CHANGE_KIND_RECALLED}", "ack"]
    assert shown(other) == [f"change {CHANGE_KIND_RECALLED}"]
    assert core.counts.deliveries == before + 3


def test_a_message_that_is_not_shown_as_it_grows_costs_nothing_until_it_has_ended(core: EdgeCore) -> None:
    mute = Shown(silent=frozenset({"message"}))
    whole, silent, _ = (dialect(core, codec, 40) for codec in (Shown(StreamingMode.COMPLETE), mute, mute))
    whole.has_backlog = True
    deliver(core, publish(1, open_message("team")), delta(1, 0))
    assert [audience.deltas for audience in core.fanout.subscriptions_of(whole).values()] == [[]]
    core.client_frames.received(silent, PING)
    core.client_frames.received(whole, IGNORED)
    assert len(silent.pending) == 1
    assert whole.pending == []


def test_a_frame_that_is_not_for_one_is_not_counted_for_it(core: EdgeCore) -> None:
    one, other = open_all(core, "ab", Shown())
    before = core.counts.deliveries
    deliver(core, publish(1, message("team", 1, text="a"), but=one), publish(1, message("team", 2, text="b")))
    assert (shown(one), shown(other)) == (["b"], ["a", "b"])
    assert core.counts.deliveries == before + 3


def test_a_client_is_accepted_also_where_its_dialect_has_no_words_for_that(core: EdgeCore) -> None:
    """The runtime still has to write the response to the handshake."""
    client = opened(core, Shown(silent=frozenset({"connected"})))
    deliver(core, topic(1, "team"), connected(client), join(client, 1))
    assert client in core.dirty
    assert client.pending == []


# Answers, heartbeats and closing


def test_an_answer_is_given_at_once_in_its_place(core: EdgeCore) -> None:
    client = dialect(core, Shown(), 40)
    deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0))
    before = core.counts.deliveries
    forwarded(core)
    core.client_frames.received(client, ASK)
    assert shown(client) == ["x ...", "x 0 ...", "answered"]
    assert core.counts.deliveries == before + 2
    for nothing in (SAY_NOTHING, IGNORED):
        core.client_frames.received(client, nothing)
    assert client.pending == []
    assert forwarded(core) == []
    assert core.counts.frames_in == 3
    assert client in core.dirty


@pytest.mark.parametrize("framing", list(Framing))
def test_what_a_codec_says_of_its_own_is_framed_as_its_frames_are(core: EdgeCore, framing: Framing) -> None:
    framed = {
        Framing.TEXT: b"\x81\x04beat",
        Framing.BINARY: b"\x82\x04beat",
        Framing.NONE: b"beat",
        Framing.PACKETS: b"beat",
        Framing.CHUNKS: b"4\r\nbeat\r\n",
    }
    client = dialect(core, Shown(framing=framing, beats=b"beat"))
    core.sessions.send_heartbeat(client)
    assert client.pending == [framed[framing]]
    client.pending.clear()
    core.client_frames.received(client, ASK)
    assert client.pending[0].removesuffix(b"\r\n").endswith(ANSWER)
    assert (client.pending[0] == ANSWER) == (framed[framing] == b"beat")


def test_no_heartbeat_is_sent_by_who_has_none_or_to_who_is_not_open(core: EdgeCore) -> None:
    client, beaten = dialect(core, Shown()), dialect(core, Shown(beats=b"beat"))
    early = opened(core, Shown(beats=b"beat"))
    core.sessions.send_heartbeat(client)
    core.sessions.send_heartbeat(early)
    core.sessions.close(beaten, catalogue.RESTARTING.refused())
    before = [*beaten.pending]
    core.sessions.send_heartbeat(beaten)
    assert (client.pending, early.pending, beaten.pending) == ([], [], before)


def test_what_comes_before_a_silent_close_is_still_told(core: EdgeCore) -> None:
    client = dialect(core, Shown(silent=frozenset({"closing"})), 40)
    deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0))
    core.sessions.close(client, catalogue.RESTARTING.refused())
    assert shown(client) == ["x ...", "x 0 ..."]
    assert closings(core, client)
    assert client in core.dirty


# Requests without ids


def requests(core: EdgeCore) -> list[tuple[int, str]]:
    """Take the messages for the router: connection and id."""
    entries = [entry for one in taken(core.uplink) for entry in one.entries if entry.HasField("frame")]
    return [(entry.frame.connection, entry.frame.frame.message.id) for entry in entries]


def test_ids_are_given_once_and_sent_again_on_a_new_link(core: EdgeCore) -> None:
    clients = []
    for number in range(2):
        wish = ConnectionOpened(address=group("team"), connection_id=f"c-{number}")
        client = core.sessions.open(Shown(assigns_ids=True), wish, 0)
        deliver(core, topic(1, "team"), connected(client), join(client, 1))
        clients.append(client)
    taken(core.uplink)
    for client in (*clients, *clients):
        core.client_frames.received(client, MESSAGE)
    asked = requests(core)
    assert len({ident for _, ident in asked}) == 4
    assert asked[0][1].startswith("c-0")
    first, second = asked[0]
    deliver(core, ack(clients[0], second))
    core.link_lost()
    core.linked()
    assert sorted(requests(core)) == sorted(asked[1:])
    deliver(core, *(ack(core.connections[number], ident) for number, ident in asked[1:]))
    core.link_lost()
    core.linked()
    assert requests(core) == []
    core.client_frames.received(clients[0], MESSAGE)
    [(number, ident)] = requests(core)
    assert number == first
    assert ident not in {each for _, each in asked}


def test_an_id_of_its_own_is_left_as_it_is(core: EdgeCore) -> None:
    client = dialect(core, Shown(assigns_ids=True))
    core.client_frames.received(client, ClientFrame(message=MessageFrame(id="own")).SerializeToString())
    assert requests(core) == [(client.number, "own")]


def test_ids_are_given_to_requests_alone_and_only_by_codecs_that_want_them(core: EdgeCore) -> None:
    giving, other = dialect(core, Shown(assigns_ids=True)), dialect(core, Shown())
    core.client_frames.received(giving, ClientFrame(signal=SignalFrame(name="n")).SerializeToString())
    core.client_frames.received(other, MESSAGE)
    assert [ident for _, ident in requests(core)] == ["", ""]


# Echo


@pytest.mark.parametrize("echo", [False, True])
def test_a_replayed_message_is_told_to_its_author_only_where_that_wants_it(
    core: EdgeCore, echo: bool
) -> None:
    wish = ConnectionOpened(address=group("team"), user="u", echo=echo)
    client = core.sessions.open(Shown(), wish, 0)
    other = dialect(core, Shown())
    deliver(core, connected(client), join(client, 1))
    core.client_frames.received(client, ClientFrame(message=MessageFrame(id="m")).SerializeToString())
    shown(client)
    core.link_lost()
    core.linked()
    deliver(core, topic(2, "team"), join(client, 2), join(other, 2))
    posted = message("team", 1, text="mine", client_id="m", user="u")
    deliver(core, publish(2, posted, replayed=True), ack(client, "m"))
    assert shown(client) == [*(["mine"] if echo else []), "ack"]
    assert shown(other) == ["mine"]


def test_the_end_of_a_message_that_was_missed_carries_the_message(core: EdgeCore) -> None:
    client = dialect(core, Shown(StreamingMode.COMPLETE))
    deliver(core, publish(1, open_message("team", text="x ")))
    core.link_lost()
    core.linked()
    end = ended(2)
    end.publish.frame.change.message.CopyFrom(message("team", 1, text="x 0 1 "))
    end.publish.replayed = True
    assert end.publish.frame.change.kind == CHANGE_KIND_ENDED
    deliver(core, topic(2, "team"), join(client, 2), end)
    assert shown(client) == ["x 0 1 "]
