"""Checks of the stream that all listeners received: nothing lost, repeated or out of order."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
from trunkline.v1 import frame_pb2

from bench.loadgen.chat_text import mark_of


class _Position(msgspec.Struct):
    seq: int = 0


class _Frame(msgspec.Struct):
    type: str
    position: _Position | None = None


_decode_json = msgspec.json.Decoder(_Frame).decode


def seq_of(payload: bytes, subprotocol: str | None) -> int:
    """Return the seq of a message frame; 0 for other frames."""
    if subprotocol == "trunkline.v1.proto":
        return frame_pb2.ServerFrame.FromString(payload).message.position.seq
    frame = _decode_json(payload)
    return frame.position.seq if frame.type == "message" and frame.position else 0


def breaks(numbers: Sequence[int]) -> int:
    """Count the numbers that are not their predecessor plus one."""
    return sum(later != earlier + 1 for earlier, later in pairwise(numbers))


def check_stream(payloads: list[bytes], subprotocol: str | None) -> dict[str, int]:
    """Count breaks in the publisher's numbers and, with a subprotocol, in the topic's seqs."""
    marks = [mark_of(payload) for payload in payloads]
    found = {
        "unmarked": sum(mark is None for mark in marks),
        "number_breaks": breaks([mark[1] for mark in marks if mark]),
    }
    if subprotocol:
        found["seq_breaks"] = breaks([seq_of(payload, subprotocol) for payload in payloads])
    return found
