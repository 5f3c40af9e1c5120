"""The codec of maim_message's Router and MessageClient: frames, ids, errors and limits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, MESSAGE_STATE_OPEN, ROLE_AGENT, ROLE_USER
from trunkline_edge.dialects.codec import FrameRefused
from trunkline_edge.dialects.maim.router_codec import MAX_FRAME_BYTES, MaimRouter

from tests.edge.dialects.test_codec_properties import ANY_JSON, frames

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CODEC = MaimRouter(lambda: NOW, "acme", "helper", "qq")

INFO: dict[str, Any] = {
    "platform": "qq",
    "message_id": "m1",
    "time": 1767323045.5,
    "group_info": {"platform": "qq", "group_id": "7"},
    "user_info": {"platform": "qq", "user_id": "42"},
}
SAID: dict[str, Any] = {"message_info": INFO, "message_segment": {"type": "text", "data": "hello"}}
CUSTOM: dict[str, Any] = {
    "platform": "qq",
    "message_type_name": "poke",
    "content": {"target": "42"},
    "timestamp": 12.5,
    "is_custom_message": True,
}


def decoded(said: object) -> Any:
    return CODEC.decode(json.dumps(said).encode()).message


def pushed(*parts: dict[str, Any], role: int = ROLE_AGENT, state: int = MESSAGE_STATE_COMPLETE) -> bytes:
    frame = ServerFrame(
        message={  # type: ignore[arg-type]
            "id": "01",
            "address": {"tenant": "acme", "agent": "helper", "platform": "qq"},
            "author": {"role": role, "name": "Helper"},
            "parts": parts,
            "state": state,
            "created_at": {"seconds": 1767323045},
        }
    )
    return CODEC.encode(frame)


def test_a_message_keeps_its_text_its_media_and_the_whole_object() -> None:
    segments = [{"type": "text", "data": "看 "}, {"type": "image", "data": "aGk="}]
    said = SAID | {"message_segment": {"type": "seglist", "data": segments}}
    text, image, whole = decoded(said).parts
    assert (text.text.text, image.image.inline) == ("看 ", b"hi")
    assert (whole.custom.name, json.loads(whole.custom.json)) == ("maim.message", said)


@pytest.mark.parametrize(("content", "text"), [({"target": "42"}, '{"target": "42"}'), ("words", "words")])
def test_a_custom_message_has_its_content_as_text(content: object, text: str) -> None:
    said = CUSTOM | {"content": content}
    first, whole = decoded(said).parts
    assert (first.text.text, json.loads(whole.custom.json)) == (text, said)


def test_only_the_whole_message_sent_again_has_the_same_id() -> None:
    first = decoded(SAID).id
    assert first.startswith("m1~")
    assert decoded(SAID).id == first
    assert decoded(SAID | {"message_segment": {"type": "text", "data": "else"}}).id != first
    assert decoded(SAID | {"message_info": INFO | {"time": 1.0}}).id != first
    assert decoded(SAID | {"message_info": INFO | {"message_id": "m2"}}).id != first


@pytest.mark.parametrize(
    "info", [{}, {"message_id": ""}, {"message_id": None}, {"message_id": True}, 7, None]
)
def test_a_message_without_an_id_is_given_one(info: object) -> None:
    assert decoded(SAID | {"message_info": info}).id == ""
    assert CODEC.assigns_ids


@pytest.mark.parametrize("message_id", ["m1", 17, "=mark", "line\nbreak", "看", "x" * 100, "x" * 500])
def test_an_id_is_valid_and_named_in_errors_unless_it_is_long(message_id: Any) -> None:
    ident = decoded(SAID | {"message_info": INFO | {"message_id": message_id}}).id
    assert ident.isprintable()
    assert len(ident) <= 128
    error = ServerFrame(error={"id": ident, "code": "RATE_LIMITED", "message": "slow down"})
    content = {"code": "RATE_LIMITED", "message": "slow down"}
    if message_id != "x" * 500:
        content["message_id"] = message_id
    sent = json.loads(CODEC.encode(error))
    assert sent["content"] == content
    assert (sent["is_custom_message"], sent["message_type_name"]) == (True, "trunkline_error")


@pytest.mark.parametrize(
    ("payload", "binary", "problem"),
    [
        (b"no JSON", False, "Invalid JSON format"),
        (b"\xff", False, "Invalid JSON format"),
        (b"[]", False, "object"),
        (b'"hello"', False, "object"),
        (json.dumps(SAID).encode(), True, "binary"),
    ],
)
def test_a_frame_that_is_no_json_object_is_refused_in_words(
    payload: bytes, binary: bool, problem: str
) -> None:
    with pytest.raises(FrameRefused, match=problem) as refused:
        CODEC.decode(payload, binary)
    assert refused.value.entry is catalogue.MALFORMED_FRAME
    error = ServerFrame(error={"code": refused.value.entry.code, "message": str(refused.value)})
    assert json.loads(CODEC.encode(error))["content"]["message"] == str(refused.value)


def test_a_reply_has_what_message_base_requires() -> None:
    sent = json.loads(pushed({"text": {"text": "hi"}}))
    assert sent == {
        "message_info": {
            "platform": "qq",
            "message_id": "01@acme",
            "time": 1767323045.0,
            "sender_info": {"user_info": {"platform": "qq", "user_id": "helper", "user_nickname": "Helper"}},
        },
        "message_segment": {"type": "text", "data": "hi"},
    }


def carrying(name: str, value: object) -> dict[str, Any]:
    return {"custom": {"name": name, "json": json.dumps(value)}}


def test_an_object_of_a_bot_is_sent_verbatim_and_completed() -> None:
    assert json.loads(pushed(carrying("maim.message", SAID))) == SAID
    assert json.loads(pushed(carrying("maim.message", CUSTOM))) == CUSTOM
    sent = json.loads(pushed({"text": {"text": "hi"}}, carrying("maim.broadcast", {"message_info": INFO})))
    assert sent == {"message_info": INFO, "message_segment": {"type": "text", "data": "hi"}}
    envelope = {"ver": 1, "type": "sys_std", "payload": SAID | {"message_dim": {}}}
    assert json.loads(pushed(carrying("maim.api", envelope))) == SAID


def test_a_custom_part_is_a_custom_message() -> None:
    sent = json.loads(pushed(carrying("custom_poke", {"target": "42"})))
    assert sent == CUSTOM | {"timestamp": 1767323045.0}


def test_messages_of_users_open_ones_and_other_frames_are_not_sent() -> None:
    assert pushed({"text": {"text": "hi"}}, role=ROLE_USER) == b""
    assert pushed({"text": {"text": "hi"}}, state=MESSAGE_STATE_OPEN) == b""
    assert pushed() == b""
    for silent in (
        {"ack": {"id": "m1~0"}},
        {"connected": {}},
        {"pong": {}},
        {"error": {"code": "NOT_FOUND"}},
    ):
        assert CODEC.encode(ServerFrame(**silent)) == b""  # type: ignore[arg-type]
    restarting = {"code": 1012, "reason": "RESTARTING", "message": "soon back"}
    assert CODEC.encode(ServerFrame(closing=restarting)) == b""  # type: ignore[arg-type]
    closing = ServerFrame(closing={"code": 4508, "reason": "SUPERSEDED", "message": "newer"})
    assert json.loads(CODEC.encode(closing))["content"] == {"code": "SUPERSEDED", "message": "newer"}


def test_a_message_that_early_clients_could_not_read_is_replaced() -> None:
    image = "A" * MAX_FRAME_BYTES
    sent = pushed(carrying("maim.message", SAID | {"message_segment": {"type": "image", "data": image}}))
    assert len(sent) < 1000
    assert "was left out" in json.loads(sent)["message_segment"]["data"]


@given(payload=st.binary(max_size=64) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None)
def test_arbitrary_bytes_are_decoded_or_refused(payload: bytes) -> None:
    try:
        frame = CODEC.decode(payload)
    except FrameRefused:
        return
    assert ClientFrame.FromString(frame.SerializeToString()).WhichOneof("frame") == "message"


@given(info=ANY_JSON, segment=ANY_JSON, flag=ANY_JSON, content=ANY_JSON)
@settings(deadline=None)
def test_arbitrary_fields_are_messages(info: Any, segment: Any, flag: Any, content: Any) -> None:
    said = {"message_info": info, "message_segment": segment, "is_custom_message": flag, "content": content}
    try:
        payload = json.dumps(said, allow_nan=False).encode()
    except ValueError:
        assume(False)
    message = CODEC.decode(payload).message
    assert json.loads(message.parts[-1].custom.json) == said


@given(frame=frames(ServerFrame))
@settings(deadline=None)
def test_any_frame_is_encoded_as_an_object_or_not_at_all(frame: ServerFrame) -> None:
    sent = CODEC.encode(frame)
    assert sent == b"" or isinstance(json.loads(sent), dict)
