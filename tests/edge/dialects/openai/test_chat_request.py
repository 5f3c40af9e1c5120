"""Requests for a chat completion: what an agent gets of them, and what is refused."""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import AGENT_MEDIA_ANY, AGENT_MEDIA_IMAGES, AGENT_MEDIA_NONE
from trunkline_edge.dialects.openai.background_task import is_background_task
from trunkline_edge.dialects.openai.chat_request import ChatRequest, read_request
from trunkline_edge.dialects.openai.content import refuse_unaccepted

from tests.edge.dialects.hostile_frames import MAX_CPU_S, VALUES, repeated
from tests.support.patience import under_load

HI = {"role": "user", "content": "hi"}
PNG = b"\x89PNG..."
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()

#: The beginning and the end of Open WebUI's template for titles.
TITLE = "### Task:\nGenerate a concise title.\n### Chat History:\n<chat_history>\nUSER: hi\n</chat_history>"


def asked(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    """Read a request."""
    return read_request(json.dumps({"model": "echo", "messages": messages or [HI], **fields}).encode())


def refusal(body: bytes) -> Refused:
    """The refusal of a body."""
    with pytest.raises(Refused) as refused:
        read_request(body)
    assert refused.value.entry is catalogue.INVALID_ARGUMENT
    return refused.value


def test_the_last_message_is_the_users_and_the_others_are_what_came_before() -> None:
    request = asked(
        {"role": "system", "content": "be brief"},
        HI,
        {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "now"}]},
    )
    assert [part.text.text for part in request.parts] == ["and ", "now"]
    assert (request.text, request.path) == ("and now", "messages[3].content")
    assert request.earlier == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]


def test_instructions_may_follow_the_last_message() -> None:
    request = asked(HI, {"role": "developer", "content": "in French"})
    assert (request.text, request.earlier) == ("hi", [{"role": "developer", "content": "in French"}])


def test_fields_that_tune_a_model_are_ignored() -> None:
    tuned = asked(temperature=0.1, max_tokens=5, stop=["x"], seed=1, tools=[], tool_choice="auto", n=1)
    assert tuned._replace(digest="") == asked()._replace(digest="")


def test_options_of_streams_are_read() -> None:
    request = asked(stream=True, stream_options={"include_usage": True}, user="ann")
    assert (request.stream, request.include_usage, request.user) == (True, True, "ann")
    assert (asked().stream, asked(stream=None).include_usage) == (False, False)


def test_equal_bodies_and_only_these_have_the_same_digest() -> None:
    assert asked().digest == asked().digest
    assert (
        len({asked().digest, asked(HI, {"role": "system", "content": ""}).digest, asked(seed=1).digest}) == 3
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"model": 1}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "system", "content": "hi"}]}, "messages"),
        ({"messages": [HI, {"role": "assistant", "content": "he"}]}, "messages[1].role"),
        ({"messages": [HI, {"role": "tool", "content": "4", "tool_call_id": "c"}]}, "messages[1]"),
        ({"messages": [HI, {"role": "assistant", "tool_calls": [{}]}, HI]}, "messages[1]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_what_no_agent_can_answer_is_refused_by_the_fields_name(fields: dict[str, Any], field: str) -> None:
    body = {"model": "echo", "messages": [HI], **fields}
    assert refusal(json.dumps(body).encode()).values["field"] == field


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"model":"echo"}', b"[" * 100_000])
def test_malformed_bodies_are_refused(body: bytes) -> None:
    assert refusal(body).values["field"] == "body"


def test_a_body_of_too_many_values_is_refused_before_it_is_built() -> None:
    body = b'{"model":"echo","messages":[%b]}' % b",".join([b'{"role":"user","content":""}'] * 50_000)
    assert "values" in str(refusal(body))


@pytest.mark.parametrize("name", [*VALUES, "messages", "long text", "long image"])
def test_a_large_body_takes_little_time(name: str) -> None:
    message = b'{"role":"user","content":"%b"}'
    bodies = {
        **{key: b'{"model":"echo","messages":[],"metadata":%b}' % value for key, value in VALUES.items()},
        "messages": b'{"model":"echo","messages":[%b]}' % repeated(message % b""),
        "long text": b'{"model":"echo","messages":[%b]}' % (message % (b"### Task:<chat" * 60_000)),
        "long image": json.dumps({"model": "echo", "messages": [content(long_image())]}).encode(),
    }
    began = time.thread_time()
    with suppress(Refused):
        is_background_task(read_request(bodies[name]), "")
    assert time.thread_time() - began < under_load(MAX_CPU_S)


def long_image() -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "AAAA" * 225_000}}


def test_a_lone_surrogate_is_no_reason_to_refuse() -> None:
    body = b'{"model":"echo","messages":[{"role":"user","content":"\\ud83d"}]}'
    assert read_request(body).text == "\ufffd"


# Media


def content(*items: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(items)}


def test_media_become_parts() -> None:
    request = asked(
        content(
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
        )
    )
    text, image, linked, audio, file = request.parts
    assert text.text.text == request.text == "see"
    assert (image.image.inline, image.image.mime_type, image.image.size_bytes) == (PNG, "image/png", len(PNG))
    assert linked.image.url == "https://example.com/a.png"
    assert (audio.audio.inline, audio.audio.mime_type) == (b"hi", "audio/wav")
    assert (file.file.inline, file.file.mime_type, file.file.name) == (b"hi", "application/pdf", "a.pdf")


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,hi"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "https://" + "a" * 4096}},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "input_audio", "input_audio": {"data": "aGk", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "../x"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (12 << 20)}},
    ],
    ids=range(10),
)
def test_media_that_cannot_be_read_are_refused(item: dict[str, Any]) -> None:
    body = json.dumps({"model": "echo", "messages": [content(item)]}).encode()
    assert str(refusal(body).values["field"]).startswith("messages[0].content[0].")


def test_media_that_the_agent_does_not_take_are_refused() -> None:
    image = asked(content({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": DATA}}))
    audio = asked(content({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}))
    refuse_unaccepted("c", asked().parts, AGENT_MEDIA_NONE, "echo")
    refuse_unaccepted("c", image.parts, AGENT_MEDIA_IMAGES, "echo")
    refuse_unaccepted("c", audio.parts, AGENT_MEDIA_ANY, "echo")
    with pytest.raises(Refused, match=r"c\[1\]: agent echo does not accept media of this kind: image"):
        refuse_unaccepted("c", image.parts, AGENT_MEDIA_NONE, "echo")
    with pytest.raises(Refused, match=r"c\[0\]: agent echo does not accept media of this kind: audio"):
        refuse_unaccepted("c", audio.parts, AGENT_MEDIA_IMAGES, "echo")


# Requests that no person made


@pytest.mark.parametrize(
    "text",
    [
        TITLE,
        "  " + TITLE,
        "Provide a concise, 5-word-or-less title for the conversation, using title case conventions. Only",
        "Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A concise ",
    ],
)
def test_titles_and_tags_are_recognised_by_their_templates(text: str) -> None:
    assert is_background_task(asked({"role": "user", "content": text}), "")


def test_what_a_person_says_is_no_background_task() -> None:
    said = ("hi", "### Task:\nwrite a poem", "what is <chat_history>?")
    assert not any(is_background_task(asked({"role": "user", "content": text}), "") for text in said)
    quoted = asked(HI, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": TITLE})
    assert not is_background_task(quoted, "")


def test_a_header_marks_any_request_as_a_background_task() -> None:
    assert is_background_task(asked(), "title_generation")
    assert not is_background_task(asked(), " ")
