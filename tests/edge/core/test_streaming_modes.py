"""Streaming modes of codecs, also across a switch of codec."""

from __future__ import annotations

import pytest
from trunkline.v1.frame_pb2 import ServerFrame
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_EDITED,
    CHANGE_KIND_RECALLED,
)
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.codec import Codec, StreamingMode

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    connected,
    deliver,
    delta,
    ended,
    heard,
    join,
    leave,
    linked_core,
    message,
    open_all,
    open_message,
    opened,
    publish,
    send,
    tables,
    topic,
)
from tests.edge.core.dialect_harness import PING, dialect, shown, texts
from tests.edge.core.snapshot_codec import ASK_HOW, SO_FAR, WHOLE, Shown


@pytest.fixture
def core() -> EdgeCore:
    return linked_core()


# Streaming modes


@pytest.mark.parametrize("beside", ["", "ab"])
def test_open_messages_are_shown_as_they_grow_or_when_they_have_ended(core: EdgeCore, beside: str) -> None:
    open_all(core, beside)
    so_far, whole = (
        dialect(core, Shown(StreamingMode.SNAPSHOTS)),
        dialect(core, Shown(StreamingMode.COMPLETE)),
    )
    deliver(core, publish(1, open_message("team", text="x ")))
    deliver(core, delta(1, 0), delta(1, 1))
    deliver(core, delta(1, 2, count=2), publish(1, message("team", 3, text="between")))
    deliver(core, ended(1, seq=4))
    assert shown(so_far) == ["x ...", "x 0 1 ...", "x 0 1 2 ...", "between", "x 0 1 2 "]
    assert shown(whole) == ["between", "x 0 1 2 "]
    assert texts(core)._snapshots == {}  # type: ignore[union-attr]


def test_what_is_added_in_one_window_is_shown_once_with_it(core: EdgeCore) -> None:
    client = dialect(core, Shown(), rollup_ms=40)
    deliver(
        core, publish(1, open_message("team", text="x ")), publish(1, open_message("team", "s", text="y "))
    )
    deliver(core, delta(1, 0), delta(1, 0, ident="s"), delta(1, 1))
    assert shown(client) == ["x ...", "y ..."]
    core.time_passed(1)
    assert shown(client) == ["x 0 1 ...", "y 0 ..."]
    deliver(core, delta(1, 2))
    core.client_frames.received(client, PING)
    assert shown(client) == ["x 0 1 2 ...", "pong"]
    core.time_passed(2)
    assert shown(client) == []
    deliver(core, delta(1, 3), leave(client, 1))
    assert shown(client) == ["x 0 1 2 3 ..."]
    assert tables(core) == []


@pytest.mark.parametrize("replies", [StreamingMode.SNAPSHOTS, StreamingMode.COMPLETE])
def test_edits_are_shown_as_messages_and_an_end_that_was_told_with_its_message_is_not_told(
    core: EdgeCore, replies: StreamingMode
) -> None:
    client = dialect(core, Shown(replies))
    edited = ended(1, kind=CHANGE_KIND_EDITED)
    edited.publish.frame.change.message.CopyFrom(message("team", 1, text="edited"))
    deliver(core, publish(1, message("team", 1, text="said")), edited, ended(1, "unknown"))
    deliver(core, ended(1, kind=CHANGE_KIND_RECALLED))
    alone = send(client, edited.publish.frame)
    end = send(client, ended(1).publish.frame)
    deliver(core, alone, end)
    assert shown(client) == ["said", "edited", f"change {CHANGE_KIND_RECALLED}", "edited"]


def test_a_recall_does_not_bring_back_what_was_said(core: EdgeCore) -> None:
    client = dialect(core, Shown(StreamingMode.COMPLETE))
    deliver(core, publish(1, open_message("team")), ended(1, kind=CHANGE_KIND_RECALLED))
    assert shown(client) == [f"change {CHANGE_KIND_RECALLED}"]


@pytest.mark.parametrize("beside", ["", "ab"])
def test_who_comes_late_is_shown_what_was_open_then(core: EdgeCore, beside: str) -> None:
    """Snapshots may hold deltas that others receive only after the newcomer has joined."""
    listeners = open_all(core, beside)
    if beside:
        deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0), delta(1, 1))
    for codec in (Shown(StreamingMode.SNAPSHOTS), Shown(StreamingMode.COMPLETE)):
        client = opened(core, codec)
        snapshot = open_message("team", text="x 0 1 2 ", next_index=3)
        sent = send(client, ServerFrame(message=snapshot))
        number = [] if core.fanout._topics else [topic(1, "team")]
        deliver(core, *number, connected(client), sent, join(client, 1))
        listeners.append(client)
    deliver(core, delta(1, 2), delta(1, 3))
    deliver(core, ended(1))
    *natives, so_far, whole = listeners
    assert shown(so_far) == ["connected", "x 0 1 2 ...", "x 0 1 2 3 ...", "x 0 1 2 3 "]
    assert shown(whole) == ["connected", "x 0 1 2 3 "]
    assert all(heard(one)[-1].startswith("change") for one in natives)


def test_a_new_link_may_take_an_open_message_back(core: EdgeCore) -> None:
    so_far, whole = (
        dialect(core, Shown(StreamingMode.SNAPSHOTS), 40),
        dialect(core, Shown(StreamingMode.COMPLETE), 40),
    )
    deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0), delta(1, 1))
    core.link_lost()
    core.linked()
    again = open_message("team", text="x 0 ", next_index=1)
    deliver(core, topic(9, "team"), join(so_far, 9), join(whole, 9), publish(9, again, replayed=True))
    deliver(core, delta(9, 1, "anew "), ended(9))
    assert shown(so_far) == ["x ...", "x 0 1 ...", "x 0 ...", "x 0 anew ...", "x 0 anew "]
    assert shown(whole) == ["x 0 anew "]


def test_of_a_log_that_was_begun_anew_nothing_old_is_kept(core: EdgeCore) -> None:
    client = dialect(core, Shown(), 40)
    deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0))
    anew = open_message("team", "new", text="y ")
    anew.position.epoch = "f"
    deliver(core, publish(1, anew), delta(1, 0, ident="new"), delta(1, 1))
    core.time_passed(1)
    assert shown(client) == ["x ...", "x 0 ...", "y ...", "y 0 ..."]
    known = texts(core)
    assert known is not None
    assert set(known._snapshots) == {"new"}


def test_texts_are_kept_only_while_somebody_needs_them(core: EdgeCore) -> None:
    open_all(core, "a")
    deliver(core, publish(1, open_message("team")))
    assert texts(core) is None
    one, other = (
        dialect(core, Shown(StreamingMode.SNAPSHOTS)),
        dialect(core, Shown(StreamingMode.COMPLETE), 40),
    )
    assert texts(core) is not None
    core.gone(one)
    assert texts(core) is not None
    deliver(core, leave(other, 1))
    assert texts(core) is None


def test_to_one_that_lags_the_latest_is_shown_when_it_has_caught_up(core: EdgeCore) -> None:
    slow, quick = dialect(core, Shown()), dialect(core, Shown())
    deliver(core, publish(1, open_message("team", text="x ")))
    slow.has_backlog = True
    for index in range(3):
        deliver(core, delta(1, index))
    assert shown(slow) == ["x ..."]
    assert core.fanout.backlog_bytes(slow) > 0
    core.backpressure.caught_up(slow)
    assert shown(slow) == ["x 0 1 2 ..."]
    slow.has_backlog = True
    deliver(core, delta(1, 3))
    deliver(core, ended(1))
    assert shown(slow)[-1] == shown(quick)[-1] == "x 0 1 2 3 "


# Switching codecs


@pytest.mark.parametrize("beside", ["", "ab"])
@pytest.mark.parametrize("lags", [False, True])
def test_a_codec_that_changes_loses_and_repeats_nothing(core: EdgeCore, beside: str, lags: bool) -> None:
    others = open_all(core, beside, Shown(), 40)
    client = dialect(core, Shown(), 40)
    deliver(core, publish(1, open_message("team", text="x ")), delta(1, 0))
    client.has_backlog = lags
    core.client_frames.received(client, WHOLE + PING)
    assert shown(client) == ["x ...", "x 0 ...", "pong"]
    deliver(core, delta(1, 1), publish(1, message("team", 2, text="between")))
    core.client_frames.received(client, SO_FAR)
    assert shown(client) == ["between", "so far:"]
    core.client_frames.received(client, SO_FAR)
    deliver(core, delta(1, 2))
    if lags:
        core.backpressure.caught_up(client)
    core.time_passed(9)
    deliver(core, ended(1, seq=3))
    assert shown(client) == ["so far:", "x 0 1 2 ...", "x 0 1 2 "]
    for other in others:
        assert shown(other) == ["x ...", "x 0 1 ...", "between", "x 0 1 2 ...", "x 0 1 2 "]
    assert tables(core) == []
    [known] = core.fanout._topics.values()
    assert len(known.groups) == 1


def test_native_codecs_can_change_too(core: EdgeCore) -> None:
    first, _ = open_all(core, "ab", JSON, 40)
    deliver(core, publish(1, open_message("team")), delta(1, 0))
    core.fanout.switch_codec(first, PROTO)
    assert first.codec is PROTO
    json, proto = b"".join(first.pending), first.pending
    assert json.count(b'"type":"delta"') == 1
    proto.clear()
    deliver(core, delta(1, 1))
    core.time_passed(9)
    assert heard(first) == ["+1 "]


def test_who_has_deltas_ahead_of_the_others_is_not_told_them_again_by_another_codec(core: EdgeCore) -> None:
    other = dialect(core, Shown())
    deliver(core, publish(1, open_message("team", text="x ")))
    client = opened(core, Shown())
    snapshot = send(client, ServerFrame(message=open_message("team", text="x 0 1 ", next_index=2)))
    deliver(core, connected(client), snapshot, join(client, 1))
    core.client_frames.received(client, WHOLE)
    core.client_frames.received(client, SO_FAR)
    deliver(core, delta(1, 0))
    deliver(core, delta(1, 1))
    assert shown(client) == ["connected", "x 0 1 ...", "whole:", "so far:"]
    deliver(core, delta(1, 2))
    assert shown(client) == ["x 0 1 2 ..."]
    assert shown(other)[-1] == "x 0 1 2 ..."


@pytest.mark.parametrize("word", [WHOLE, SO_FAR])
def test_a_codec_may_change_while_its_client_arrives(core: EdgeCore, word: bytes) -> None:
    before = StreamingMode.SNAPSHOTS if word == WHOLE else StreamingMode.COMPLETE
    client = opened(core, Shown(before))
    snapshot = send(client, ServerFrame(message=open_message("team", text="x 0 ", next_index=1)))
    deliver(core, topic(1, "team"), connected(client), snapshot)
    core.client_frames.received(client, word)
    deliver(core, join(client, 1), delta(1, 1))
    deliver(core, ended(1))
    sent = shown(client)
    assert sent[-1] == "x 0 1 "
    assert ("x 0 1 ..." in sent) == (word == SO_FAR)
    assert [text for text in sent if not text.endswith("...")] == ["connected", word.decode(), "x 0 1 "]


def test_what_was_said_before_it_was_connected_is_read_by_each_codec_in_turn(core: EdgeCore) -> None:
    client = opened(core, Shown())
    core.client_frames.received(client, WHOLE, True)
    core.client_frames.received(client, ASK_HOW, True)
    core.client_frames.received(client, ASK_HOW, False)
    deliver(core, topic(1, "team"), connected(client), join(client, 1))
    assert shown(client) == ["connected", "whole:", "binary", "text"]
    assert client.codec == Shown(StreamingMode.COMPLETE)


@pytest.mark.parametrize("codecs", [(PROTO, Shown()), (Shown(), PROTO)])
def test_a_codec_that_is_shown_deltas_cannot_follow_one_that_is_not(
    core: EdgeCore, codecs: tuple[Codec, Codec]
) -> None:
    client = dialect(core, codecs[0])
    with pytest.raises(AssertionError, match="text so far"):
        core.fanout.switch_codec(client, codecs[1])
