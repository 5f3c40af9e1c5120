"""Items are counted in serialized messages, before anything is built from them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, ExtendMessageRequest
from trunkline.v1.frame_pb2 import ClientFrame
from trunkline_runtime.message_outline import TooManyItems, check_items

#: CPU time for a few megabytes; building them takes a second and more.
MAX_CPU_S = 0.25


def items(message: Message) -> int:
    """The least limit that the message fits."""
    serialized = message.SerializeToString()
    low, high = 0, 1 << 20
    while low < high:
        middle = (low + high) // 2
        try:
            check_items(message.DESCRIPTOR, serialized, middle)
        except TooManyItems:
            low = middle + 1
        else:
            high = middle
    return low


PART: dict[str, Any] = {"text": {"text": "line\nline\n"}}
DATA: dict[str, Any] = {"custom": {"data": {"a": [1, {"b": True}]}}}


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (BroadcastRequest(), 0),
        (BroadcastRequest(parts=[PART] * 3), 3),
        (BroadcastRequest(parts=[PART], attributes={"a": "1", "b": "2"}), 3),
        # The value of each key counts twice, for its key has the same tag.
        (BroadcastRequest(parts=[DATA]), 1 + 6),
        (ClientFrame(signal={"data": {"a": True}}), 2),
        (ClientFrame(resume={"positions": [{}] * 5}), 5),
        (ExtendMessageRequest(deltas=[{"text": "a"}, {"part": DATA}]), 2 + 6),
        (AttachRequest(settlements=[{"replies": [{"parts": [PART] * 2}] * 2}]), 1 + 2 + 4),
    ],
)
def test_items_are_counted_at_all_levels(message: Message, count: int) -> None:
    assert items(message) == count


def test_bytes_that_are_no_message_are_not_counted() -> None:
    with pytest.raises(DecodeError):
        check_items(BroadcastRequest.DESCRIPTOR, b"\x12\xff\xff", 10)


def _data(value: Value) -> Message:
    struct = Struct(fields={"a": Value(list_value=ListValue(values=[value] * 300_000))})
    return BroadcastRequest(parts=[{"custom": {"data": struct}}])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "message",
    [
        BroadcastRequest(parts=[{}] * 1_000_000),
        BroadcastRequest(attributes={f"{number:x}": "" for number in range(300_000)}),
        _data(Value()),
        _data(Value(list_value=ListValue())),
        ExtendMessageRequest(deltas=[{}] * 1_000_000),
    ],
    ids=["parts", "attributes", "values", "lists", "deltas"],
)
def test_a_hostile_message_is_refused_at_the_price_of_reading_it(message: Message) -> None:
    serialized = message.SerializeToString()
    started = time.thread_time()
    with pytest.raises(TooManyItems):
        check_items(message.DESCRIPTOR, serialized, 65_536)
    assert time.thread_time() - started < MAX_CPU_S
