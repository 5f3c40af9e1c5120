"""Replies as chat completions, whole and in chunks, and errors in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from trunkline.v1 import catalogue
from trunkline.v1.message_pb2 import Message, Part
from trunkline_edge.dialects.openai.completion import DONE, CompletionStream, completion_of, message_id_of
from trunkline_edge.dialects.openai.errors import render, render_refusal


def reply(*parts: dict[str, Any]) -> Message:
    """A reply of the agent."""
    fields = {"id": "m1", "createdAt": "2026-01-01T00:00:00Z", "parts": list(parts)}
    return ParseDict(fields, Message())


def usage(prompt: object, completion: object) -> dict[str, Any]:
    """A worker's part with usage."""
    return {"custom": {"name": "usage", "data": {"prompt_tokens": prompt, "completion_tokens": completion}}}


def events(data: bytes) -> list[Any]:
    """The JSON of each event."""
    lines = [line for line in data.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line[6:] == "[DONE]" else json.loads(line[6:]) for line in lines]


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """A chunk of the reply `m1`."""
    return {
        "id": "chatcmpl-m1",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": "echo",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def test_a_reply_is_a_chunk_for_each_piece_between_the_role_and_the_reason_to_finish() -> None:
    stream = CompletionStream(reply(), "echo", include_usage=False)
    data = (
        stream.begin()
        + stream.reasoning("hm")
        + stream.text('a "b"\n')
        + stream.text("\u00e9")
        + stream.end()
    )
    assert events(data) == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": 'a "b"\n'}),
        chunk({"content": "\u00e9"}),
        chunk({}, "stop"),
        "[DONE]",
    ]
    assert stream.text("") == stream.reasoning("") == b""


def test_usage_follows_the_last_chunk_if_it_is_wanted_and_known() -> None:
    for wanted, known in ((True, True), (True, False), (False, True)):
        stream = CompletionStream(reply(), "echo", include_usage=wanted)
        data = stream.begin()
        if known:
            assert stream.part(ParseDict(usage(3, 4), Part())) == b""
        *before, last, done = events(data + stream.end())
        assert done == "[DONE]"
        if wanted and known:
            assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
            assert last["choices"] == []
            assert [each["usage"] for each in before] == [None, None]
        else:
            assert last["choices"][0]["finish_reason"] == "stop"
            assert ("usage" in last) is wanted


def test_a_whole_reply_is_one_body() -> None:
    parts = (
        {"reasoning": {"text": "hm"}},
        {"text": {"text": "one "}},
        {"toolCall": {"callId": "c", "name": "search"}},
        {"text": {"text": "two"}},
        {"image": {"url": "https://example.com/a (1).png", "name": "a [b]"}},
        {"file": {"inline": "aGk="}},
        usage(1, 2),
    )
    assert completion_of(reply(*parts), "echo") == {
        "id": "chatcmpl-m1",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "one two![a (b)](https://example.com/a%20%281%29.png)",
                    "refusal": None,
                    "reasoning_content": "hm",
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    body = completion_of(reply(), "echo")
    assert "usage" not in body
    assert "reasoning_content" not in body["choices"][0]["message"]


@pytest.mark.parametrize("count", [-1, 1e300, float("nan"), "3", None])
def test_counts_that_are_none_are_ignored(count: object) -> None:
    part = Part()
    part.custom.name = "usage"
    part.custom.data.update({"prompt_tokens": count, "completion_tokens": 1})
    stream = CompletionStream(reply(), "echo", include_usage=True)
    assert stream.part(part) == b""
    last = events(stream.end())[-2]
    assert last["choices"] == [] or last["choices"][0]["finish_reason"] == "stop"
    if last["choices"] == []:
        assert last["usage"] == {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}


def test_the_id_of_a_completion_is_that_of_the_reply() -> None:
    assert message_id_of("chatcmpl-m1") == message_id_of("m1") == "m1"
    assert DONE == b"data: [DONE]\n\n"


def test_errors_have_openais_shape_and_say_whether_to_retry() -> None:
    status, headers, body = render_refusal(catalogue.RATE_LIMITED.refused(whose="ann", limit=3), 429)
    assert status == 429
    assert body["error"] | {"message": ""} == {
        "message": "",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == (
        "1",
        "1000",
        "true",
    )
    refused = catalogue.INVALID_ARGUMENT.refused(field="n", problem="must be 1")
    status, headers, body = render_refusal(refused, 400)
    assert body["error"] == {
        "message": "n: must be 1",
        "type": "invalid_request_error",
        "param": "n",
        "code": "INVALID_ARGUMENT",
    }
    assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("code", "status", "kind", "name"),
    [
        ("UNAUTHORIZED", 401, "authentication_error", "invalid_api_key"),
        ("TOKEN_EXPIRED", 401, "authentication_error", "TOKEN_EXPIRED"),
        ("FORBIDDEN", 403, "permission_error", "FORBIDDEN"),
        ("UNKNOWN_AGENT", 404, "invalid_request_error", "model_not_found"),
        ("IDEMPOTENCY_MISMATCH", 409, "invalid_request_error", "IDEMPOTENCY_MISMATCH"),
        ("INTERNAL", 500, "server_error", "INTERNAL"),
        ("ROUTER_UNAVAILABLE", 503, "server_error", "ROUTER_UNAVAILABLE"),
    ],
)
def test_programs_find_the_codes_that_they_compare(code: str, status: int, kind: str, name: str) -> None:
    error = render(code, "text", status).body["error"]
    assert (error["type"], error["code"]) == (kind, name)
    assert (error["param"] == "model") is (code == "UNKNOWN_AGENT")
