"""Fan-out: frames are encoded once per codec and joined, whatever the number of subscribers."""

from __future__ import annotations

from trunkline_edge.core.connection import Connection
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.dialects.codec import Codec

from tests.edge.core.core_harness import (
    JSON,
    PROTO,
    Counting,
    connected,
    deliver,
    heard,
    join,
    linked_core,
    message,
    opened,
    publish,
    topic,
)


def listening(*codecs: Codec) -> tuple[EdgeCore, list[Connection]]:
    """Open connections with these codecs, subscribed to topic 1."""
    core = linked_core()
    listeners = [opened(core, codec) for codec in codecs]
    deliver(core, topic(1, "team"))
    for one in listeners:
        deliver(core, connected(one), join(one, 1))
        one.pending.clear()
    return core, listeners


def test_a_frame_is_encoded_once_per_codec() -> None:
    json, proto = Counting(JSON), Counting(PROTO)
    core, _ = listening(*[json, proto] * 10)
    json.encoded = proto.encoded = 0
    deliver(core, *(publish(1, message("team", seq)) for seq in (1, 2, 3)))
    assert (json.encoded, proto.encoded) == (3, 3)


def test_frames_that_are_ready_together_are_one_piece_shared_by_all_listeners() -> None:
    core, listeners = listening(JSON, JSON, JSON)
    deliver(core, *(publish(1, message("team", seq)) for seq in (1, 2, 3)))
    assert [len(listener.pending) for listener in listeners] == [1, 1, 1]
    assert len({id(listener.pending[0]) for listener in listeners}) == 1
    assert [heard(listener) for listener in listeners] == [["message 1", "message 2", "message 3"]] * 3


def test_each_codec_gets_the_same_frames_in_its_own_form() -> None:
    core, (json, proto) = listening(JSON, PROTO)
    deliver(core, publish(1, message("team", 1)), publish(1, message("team", 2)))
    assert heard(json) == heard(proto) == ["message 1", "message 2"]


def test_an_author_gets_all_but_its_own() -> None:
    core, (author, other) = listening(JSON, JSON)
    posted = [message("team", seq) for seq in (1, 2, 3)]
    deliver(core, publish(1, posted[0]), publish(1, posted[1], but=author), publish(1, posted[2]))
    assert heard(author) == ["message 1", "message 3"]
    assert heard(other) == ["message 1", "message 2", "message 3"]


def test_an_author_of_everything_gets_nothing() -> None:
    core, (author, other) = listening(JSON, JSON)
    deliver(core, publish(1, message("team", 1), but=author))
    assert author.pending == []
    assert heard(other) == ["message 1"]


def test_what_was_given_out_is_not_given_again() -> None:
    core, (listener,) = listening(JSON)
    deliver(core, publish(1, message("team", 1)))
    deliver(core)
    assert heard(listener) == ["message 1"]
