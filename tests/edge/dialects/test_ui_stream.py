"""Replies as UI message streams, frame by frame, and what an exchange does with other frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_PERSON, Address, Conversation, Position, TopicPosition
from trunkline.v1.frame_pb2 import (
    REPLY_STATUS_RETRYING,
    AckFrame,
    ConnectedFrame,
    DeltaFrame,
    ErrorFrame,
    HistoryPageFrame,
    MessageFrame,
    ReplyStatusFrame,
    ServerFrame,
)
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_CANCELLED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_EXPIRED,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Author,
    Change,
    CustomPart,
    MediaPart,
    Message,
    Part,
    ToolCallPart,
    ToolResultPart,
)
from trunkline_edge.dialects.ai_sdk.ui_stream import ResumedStream, UiMessageStream
from trunkline_edge.dialects.reply_exchange import MAX_EARLY_FRAMES, ReplyExchange
from trunkline_runtime.refusals import closing_frame

from tests.support.event_source import EventReader

CHAT = Address(
    tenant="t",
    agent="a",
    platform="ai_sdk",
    conversation=Conversation(kind=CONVERSATION_KIND_PERSON, id="»c"),
)


def connected(seq: int = 0) -> ServerFrame:
    frame = ServerFrame(connected=ConnectedFrame())
    frame.connected.positions.append(TopicPosition(address=Address(tenant="t")))
    frame.connected.positions.append(TopicPosition(address=CHAT, position=Position(epoch="e", seq=seq)))
    return frame


def ack(seq: int = 1) -> ServerFrame:
    return ServerFrame(ack=AckFrame(id="m1", message_id="q", position=Position(epoch="e", seq=seq)))


def reply(
    ident: str = "r", reply_to: str = "q", state: int = MESSAGE_STATE_OPEN, **fields: Any
) -> ServerFrame:
    message = Message(
        id=ident,
        reply_to=reply_to,
        author=Author(role=ROLE_AGENT),
        address=CHAT,
        state=state,
        **fields,  # type: ignore[arg-type]
    )
    return ServerFrame(message=message)


def delta(ident: str = "r", **content: Any) -> ServerFrame:
    return ServerFrame(delta=DeltaFrame(message_id=ident, **content))


def end(ident: str = "r", state: int = MESSAGE_STATE_COMPLETE) -> ServerFrame:
    return ServerFrame(change=Change(message_id=ident, kind=CHANGE_KIND_ENDED, state=state))  # type: ignore[arg-type]


def chunks(events: bytes) -> list[Any]:
    found = [event.data for event in EventReader().feed(events)]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def sent() -> UiMessageStream:
    stream = UiMessageStream(MessageFrame(id="m1"))
    assert stream.decode(b"") is not None
    assert not chunks(stream.encode(connected()) + stream.subscribed())
    return stream


def test_every_part_has_its_chunks() -> None:
    stream = sent()
    assert stream.encode(ack()).startswith(b":")
    events = b"".join(
        map(
            stream.encode,
            [
                reply(),
                delta(reasoning="hm"),
                delta(text="one "),
                delta(text="two"),
                delta(part=Part(tool_call=ToolCallPart(call_id="c", name="look", arguments='{"a"'))),
                delta(part=Part(tool_call=ToolCallPart(call_id="c", arguments=":1}"))),
                delta(part=Part(tool_result=ToolResultPart(call_id="c", result="[2]"))),
                delta(part=Part(tool_result=ToolResultPart(call_id="x", result="lost"))),
                delta(part=Part(image=MediaPart(url="https://x.example/a.png", mime_type="image/png"))),
                delta(part=Part(file=MediaPart(storage_key="k"))),
                delta(part=Part(custom=CustomPart(name="place", json='{"lat":1}'))),
                end(),
            ],
        )
    )
    called = {"toolCallId": "c", "dynamic": True, "providerExecuted": True}
    call = {**called, "toolName": "look"}
    assert chunks(events) == [
        {"type": "start", "messageId": "r"},
        {"type": "reasoning-start", "id": "1"},
        {"type": "reasoning-delta", "id": "1", "delta": "hm"},
        {"type": "reasoning-end", "id": "1"},
        {"type": "text-start", "id": "2"},
        {"type": "text-delta", "id": "2", "delta": "one "},
        {"type": "text-delta", "id": "2", "delta": "two"},
        {"type": "text-end", "id": "2"},
        {"type": "tool-input-start", **call},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"a"'},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": ":1}"},
        {"type": "tool-input-available", **call, "input": {"a": 1}},
        {**called, "type": "tool-output-available", "output": [2]},
        {"type": "data-tool_result", "data": {"call_id": "x", "result": "lost", "failed": False}},
        {"type": "file", "url": "https://x.example/a.png", "mediaType": "image/png"},
        {"type": "data-file", "data": {"storage_key": "k"}},
        {"type": "data-place", "data": {"lat": 1}},
        {"type": "finish", "finishReason": "stop"},
        "[DONE]",
    ]
    assert stream.is_complete
    assert stream.encode(delta(text="late")) == b""


@pytest.mark.parametrize(
    ("state", "last"), [(MESSAGE_STATE_CANCELLED, "abort"), (MESSAGE_STATE_EXPIRED, "error")]
)
def test_each_end_has_its_terminal_event(state: int, last: str) -> None:
    stream = sent()
    stream.encode(ack())
    stream.encode(reply())
    assert [chunk["type"] for chunk in chunks(stream.encode(end(state=state)))[:-1]] == [last]


def test_other_messages_of_the_conversation_are_not_of_the_reply() -> None:
    stream = sent()
    early = [
        reply("other", "before"),
        delta("other", text="x"),
        reply("r"),
        delta(text="one "),
        delta(text="two"),
    ]
    assert not b"".join(map(stream.encode, early))
    events = stream.encode(ack())
    events += stream.encode(delta("other", text="y")) + stream.encode(end("other"))
    stranger = ServerFrame(message=Message(id="u", reply_to="q", author=Author(role=ROLE_USER)))
    events += stream.encode(stranger) + stream.encode(delta(text=" three")) + stream.encode(end())
    text = "".join(chunk["delta"] for chunk in chunks(events) if "delta" in chunk)
    assert text == "one two three"
    assert chunks(events)[0] == {"type": "start", "messageId": "r"}


def test_refusal_before_the_message_is_stored_is_no_stream() -> None:
    stream = sent()
    error = ErrorFrame(id="m1", code="RATE_LIMITED", message="slow down", retry_after_ms=5)
    assert stream.encode(ServerFrame(error=error)) == b""
    assert stream.refused is not None
    assert (stream.refused.entry.code, str(stream.refused), stream.refused.retry_after_ms) == (
        "RATE_LIMITED",
        "slow down",
        5,
    )


def test_edge_that_goes_resets_the_stream_unless_it_is_final() -> None:
    for reason, last in ((catalogue.RESTARTING, []), (catalogue.TOKEN_REVOKED, ["error"])):
        stream = sent()
        stream.encode(ack())
        stream.encode(reply())
        events = stream.encode(ServerFrame(closing=closing_frame(reason.refused())))
        assert [chunk["type"] for chunk in chunks(events)[:-1]] == last
        assert (stream.is_broken, stream.is_complete) == (not last, bool(last))


def test_repeated_message_is_looked_up_in_the_log() -> None:
    stream = UiMessageStream(MessageFrame(id="m1"))
    stream.decode(b"")
    stream.encode(connected(seq=5))
    stream.encode(ack(seq=3))
    asked = stream.decode(b"")
    assert asked.history.after.seq == 3  # type: ignore[union-attr]
    done = reply(state=MESSAGE_STATE_COMPLETE, parts=[Part(text={"text": "whole"})]).message  # type: ignore[arg-type]
    events = stream.encode(ServerFrame(history=HistoryPageFrame(messages=[done])))
    assert [chunk["type"] for chunk in chunks(events)[:-1]][-1] == "finish"
    assert stream.is_complete


def test_page_without_a_reply_gets_204_and_waits_only_for_a_while() -> None:
    stream = ResumedStream()
    stream.encode(connected())
    assert stream.subscribed() == b""
    assert stream.decode(b"") is not None
    question = Message(id="q", author=Author(role=ROLE_USER))
    assert stream.encode(ServerFrame(history=HistoryPageFrame(messages=[question]))) == b""
    # After a lost link everything comes again.
    assert (stream.subscribed(), stream.decode(b"")) == (b"", None)
    assert (stream.heartbeat(), stream.answer) == (b"", None)
    assert stream.heartbeat() == b""
    assert stream.answer is not None
    assert stream.answer.status == 204


def test_page_gets_the_reply_that_ends_while_the_log_is_read() -> None:
    stream = ResumedStream()
    stream.encode(connected())
    stream.subscribed()
    for frame in (reply(), delta(text="late"), end()):
        assert stream.encode(frame) == b""
    events = stream.encode(
        ServerFrame(history=HistoryPageFrame(messages=[reply(state=MESSAGE_STATE_COMPLETE).message]))
    )
    assert [chunk["type"] for chunk in chunks(events)[:-1]] == [
        "start", "text-start", "text-delta", "text-end", "finish",
    ]  # fmt: skip
    assert stream.is_complete


def test_attempt_that_fails_before_the_ack_is_reported() -> None:
    stream = sent()
    status = ReplyStatusFrame(message_id="q", status=REPLY_STATUS_RETRYING, attempts=1)
    assert stream.encode(ServerFrame(reply_status=status)) == b""
    assert [chunk["type"] for chunk in chunks(stream.encode(ack()))] == ["data-retrying"]


def test_flood_before_the_ack_is_refused() -> None:
    stream = sent()
    for _ in range(MAX_EARLY_FRAMES + 1):
        stream.encode(delta("other", text="x"))
    assert stream.refused is not None
    assert stream.refused.entry.code == "OVERLOADED"


def test_reply_that_contradicts_what_was_written_resets_the_stream() -> None:
    stream = sent()
    stream.encode(ack())
    for frame in (reply(), delta(text="one")):
        stream.encode(frame)
    stream.encode(reply(parts=[Part(text={"text": "other words"})]))  # type: ignore[arg-type]
    assert stream.is_broken


def test_exchanges_are_never_shared() -> None:
    assert UiMessageStream() != UiMessageStream()
    assert issubclass(UiMessageStream, ReplyExchange)
