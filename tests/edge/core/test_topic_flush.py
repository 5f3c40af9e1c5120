"""One encoding per codec, joined, whatever the number of listeners."""

from __future__ import annotations

from edge_core_world import JSON, PROTO, heard, message
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame

from edge.core.connection import Connection, Topic
from edge.dialects.codec import Codec


class Counting:
    """A codec that counts what it encodes."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.name, self.binary = codec.name, codec.binary
        self.encoded = 0

    def decode(self, payload: bytes) -> ClientFrame:
        return self._codec.decode(payload)

    def encode(self, frame: ServerFrame) -> bytes:
        self.encoded += 1
        return self._codec.encode(frame)


def topic_with(codecs: list[Codec], seqs: list[int]) -> tuple[Topic, list[Connection]]:
    topic = Topic(1, b"", "e", 0)
    listeners = [Connection(number, None, codec, b"") for number, codec in enumerate(codecs, 1)]
    topic.listeners.update(listeners)
    topic.run = [(ServerFrame(message=message("team", seq)), 0) for seq in seqs]
    return topic, listeners


def test_a_frame_is_encoded_once_per_codec() -> None:
    json, proto = Counting(JSON), Counting(PROTO)
    topic, _ = topic_with([json, proto] * 10, [1, 2, 3])
    topic.flush()
    assert (json.encoded, proto.encoded) == (3, 3)


def test_frames_that_are_ready_together_are_one_piece_shared_by_all_listeners() -> None:
    topic, listeners = topic_with([JSON] * 3, [1, 2, 3])
    topic.flush()
    assert [len(listener.pending) for listener in listeners] == [1, 1, 1]
    assert len({id(listener.pending[0]) for listener in listeners}) == 1
    assert [heard(listener) for listener in listeners] == [["message 1", "message 2", "message 3"]] * 3


def test_each_codec_gets_the_same_frames_in_its_own_form() -> None:
    topic, (json, proto) = topic_with([JSON, PROTO], [1, 2])
    topic.flush()
    assert heard(json) == heard(proto) == ["message 1", "message 2"]


def test_an_author_gets_all_but_its_own() -> None:
    topic, (author, other) = topic_with([JSON, JSON], [1, 2, 3])
    topic.run[1] = (topic.run[1][0], author.number)
    topic.flush()
    assert heard(author) == ["message 1", "message 3"]
    assert heard(other) == ["message 1", "message 2", "message 3"]


def test_an_author_of_everything_gets_nothing() -> None:
    topic, (author, other) = topic_with([JSON, JSON], [1])
    topic.run[0] = (topic.run[0][0], author.number)
    topic.flush()
    assert author.pending == []
    assert heard(other) == ["message 1"]


def test_a_run_is_given_out_once() -> None:
    topic, (listener,) = topic_with([JSON], [1])
    topic.flush()
    topic.flush()
    assert [text for text in heard(listener) if text] == ["message 1"]
