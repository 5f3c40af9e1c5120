"""Requests of the AI SDK: which are read, as what, and which are refused as a whole."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from trunkline.v1.catalogue import Refused
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    ROLE_AGENT,
    ROLE_USER,
    Author,
    Message,
    Part,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from trunkline_edge.dialects.ai_sdk.ui_messages import (
    EDITS,
    MAX_BODY_VALUES,
    REGENERATES,
    read_request,
    ui_messages,
)

from tests.edge.dialects.hostile_frames import MAX_CPU_S, VALUES

TEXT = {"type": "text", "text": "hello"}


def body(*parts: Any, role: str = "user", ident: str = "m1", **fields: Any) -> bytes:
    message = {"id": ident, "role": role, "parts": list(parts) or [TEXT], "metadata": {"any": 1}}
    return json.dumps({"id": "c1", "messages": [{"anything": True}, message], **fields}).encode()


def refusal(sent: bytes) -> str:
    with pytest.raises(Refused) as refused:
        read_request(sent)
    assert refused.value.entry.code == "INVALID_ARGUMENT"
    return str(refused.value)


def test_only_the_last_message_is_read() -> None:
    sent = read_request(body(trigger="submit-message", messageId=None, temperature=1))
    assert (sent.chat, sent.message.id, sent.replaces_last) == ("c1", "m1", False)
    assert [part.text.text for part in sent.message.parts] == ["hello"]
    alone = {"id": "c1", "message": {"id": "m2", "role": "user", "parts": [TEXT]}}
    assert read_request(json.dumps(alone).encode()).message.id == "m2"


def test_parts_have_counterparts() -> None:
    sent = read_request(
        body(
            TEXT,
            {"type": "text", "text": ""},
            {"type": "step-start"},
            {
                "type": "file",
                "mediaType": "image/png",
                "url": "data:image/png;base64,AAEC",
                "filename": "a.png",
            },
            {"type": "file", "mediaType": "application/pdf", "url": "https://x.example/a.pdf"},
            {"type": "file", "mediaType": "text/plain", "url": "data:text/plain,a%20b"},
            {"type": "data-place", "data": {"lat": 1.5}},
        )
    )
    _, image, pdf, plain, place = sent.message.parts
    assert (image.image.inline, image.image.mime_type, image.image.name) == (b"\0\1\2", "image/png", "a.png")
    assert (pdf.file.url, pdf.file.mime_type) == ("https://x.example/a.pdf", "application/pdf")
    assert plain.file.inline == b"a b"
    assert (place.custom.name, place.custom.json) == ("data-place", '{"lat":1.5}')


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"", "body: "),
        (b"[]", "body: "),
        (b"{}", "body: "),
        (b'{"id":"c1","messages":[]}', "messages: must not be empty"),
        (b'{"id":"c1","messages":[null]}', "messages: the last one cannot be read"),
        (b'{"id":"c1","messages":[{"role":"user"}]}', "messages: the last one cannot be read"),
        (b'{"id":"c1","messages":[' + b"[" * 100_000, "body: "),
        (b'{"id":"c1","messages":["\xff"]}', "messages: the last one cannot be read"),
        (body(role="assistant"), "messages: the last must have the role user, not assistant"),
        (body(role="wizard"), "messages: the last must have the role user, not wizard"),
        (body(ident=""), "messages: the last must have an id"),
        (body(trigger="resume"), "trigger: must be submit-message or regenerate-message"),
        (body({"type": "text", "text": ""}), "parts: the message has no content"),
        (body({"type": "text", "text": 1}), "parts: text must be a string"),
        (body({"type": "tool-x", "state": "output-available"}), "parts: a user's message has text, file"),
        (body({"text": "x"}), "not a part of type none"),
        (body({"type": "file", "mediaType": "a/b", "url": "blob:x"}), "parts: the url of a file must begin"),
        (body({"type": "file", "mediaType": "a/b", "url": "data:a/b"}), "the data URL of a file has no data"),
        (body({"type": "file", "mediaType": "a/b", "url": "data:;base64,?"}), "is not base64"),
        (body({"type": "file", "url": "https://x"}), "parts: mediaType must be a string"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(sent: bytes, problem: str) -> None:
    assert problem in refusal(sent)


@pytest.mark.parametrize("name", VALUES)
def test_many_values_are_refused_at_the_price_of_reading_them(name: str) -> None:
    part = b'{"type":"data-x","data":%b}' % VALUES[name]
    sent = b'{"id":"c1","messages":[{"id":"m","role":"user","parts":[%b]}]}' % part
    started = time.thread_time()
    assert "values; at most" in refusal(sent) or "body: " in refusal(sent)
    assert time.thread_time() - started < 2 * MAX_CPU_S


def test_many_messages_before_the_last_are_refused_before_they_take_memory() -> None:
    last = b'{"id":"m","role":"user","parts":[{"type":"text","text":"hi"}]}'
    assert "values; at most" in refusal(b'{"id":"c1","messages":[%b%b]}' % (b"0," * MAX_BODY_VALUES, last))
    assert read_request(b'{"id":"c1","messages":[%b%b]}' % (b"0," * 100_000, last)).message.id == "m"


def test_id_follows_from_what_is_replaced() -> None:
    assert read_request(body(trigger="regenerate-message")).replaces_last
    again = read_request(body(trigger="regenerate-message", messageId="a1"))
    assert (again.message.id, dict(again.message.attributes)) == ("m1~a1", {REGENERATES: "a1"})
    assert again == read_request(body(trigger="regenerate-message", messageId="a1"))
    edited = read_request(body(messageId="m1"))
    assert edited.message.id != "m1"
    assert edited.message.attributes[EDITS] == "m1"
    assert edited == read_request(body(messageId="m1"))
    assert edited.message.id != read_request(body({"type": "text", "text": "x"}, messageId="m1")).message.id
    long = read_request(body(ident="m" * 128, trigger="regenerate-message", messageId="a" * 128))
    assert len(long.message.id) == 32


def logged(ident: str, role: int, *parts: Part, **fields: Any) -> Message:
    author = Author(role=role)  # type: ignore[arg-type]
    return Message(id=ident, author=author, parts=parts, **{"state": MESSAGE_STATE_COMPLETE, **fields})


def text(words: str) -> Part:
    return Part(text=TextPart(text=words))


def test_page_has_the_messages_as_they_are_displayed() -> None:
    shown = ui_messages(
        [
            logged("1", ROLE_USER, text("ask"), client_id="m1"),
            logged(
                "2",
                ROLE_AGENT,
                Part(tool_call=ToolCallPart(call_id="c", name="look", arguments='{"a":1}')),
                Part(tool_result=ToolResultPart(call_id="c", result="[2]")),
                text("answer"),
            ),
            logged("3", ROLE_USER, text("more"), client_id="m2"),
            logged("4", ROLE_AGENT, text("first")),
            logged("5", ROLE_USER, text("more"), client_id="m2~4", attributes={REGENERATES: "4"}),
            logged("6", ROLE_AGENT, text("second")),
            logged("7", ROLE_AGENT, text("being writ"), state=MESSAGE_STATE_OPEN),
        ]
    )
    assert [(each["id"], each["role"]) for each in shown] == [
        ("m1", "user"),
        ("2", "assistant"),
        ("m2", "user"),
        ("6", "assistant"),
    ]
    assert shown[1]["parts"][0] == {
        "type": "dynamic-tool",
        "toolName": "look",
        "toolCallId": "c",
        "input": {"a": 1},
        "providerExecuted": True,
        "state": "output-available",
        "output": [2],
    }
