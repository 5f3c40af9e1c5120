"""Bounds of buffered bodies."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message
from trunkline.v1.catalogue import Refused
from trunkline_edge.http.body_reader import BodyReader, check_body_type
from trunkline_edge.transport.body_budget import (
    MAX_BODY_BYTES,
    MAX_SHARE_BYTES,
    MAX_TOTAL_BYTES,
    SMALL_BODY_BYTES,
)


def request(chunks: list[bytes], length: int | None = None) -> Request:
    """A request whose body arrives in chunks, and whose head may state its length."""
    left = list(chunks)

    async def receive() -> Message:
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    headers = [(b"content-type", b"application/json")]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    else:
        headers.append((b"transfer-encoding", b"chunked"))
    return Request({"type": "http", "headers": headers}, receive)


async def refusal(reader: BodyReader, tenant: str, body: Request) -> str:
    with pytest.raises(Refused) as refused:
        async with reader.json(body, tenant, expected=True):
            pass
    return refused.value.entry.code


async def test_the_bodies_of_one_tenant_leave_room_for_those_of_others() -> None:
    reader = BodyReader()
    reader.budget.reserve("a", MAX_SHARE_BYTES - 10)
    large_body = [b"x" * SMALL_BODY_BYTES, b"y"]
    assert await refusal(reader, "a", request(large_body)) == "OVERLOADED"
    async with reader.json(request([b"[]"]), "a", expected=True) as small:
        assert small == b"[]"
    async with reader.json(request([b"x" * MAX_BODY_BYTES]), "b", expected=True) as large:
        assert len(large) == MAX_BODY_BYTES
    reader.budget.release("a", MAX_SHARE_BYTES - 10)
    assert (reader.budget.buffered_bytes, reader.budget._bytes_of_share) == (0, {})


async def test_all_bodies_together_are_bounded() -> None:
    reader = BodyReader()
    for number in range(MAX_TOTAL_BYTES // MAX_SHARE_BYTES):
        reader.budget.reserve(f"t{number}", MAX_SHARE_BYTES)
    rest = MAX_TOTAL_BYTES % MAX_SHARE_BYTES
    async with reader.json(request([b"x" * rest]), "new", expected=True):
        assert await refusal(reader, "other", request([b"x" * SMALL_BODY_BYTES, b"x"])) == "OVERLOADED"
        async with reader.json(request([b"x" * SMALL_BODY_BYTES]), "other", expected=True) as small:
            assert len(small) == SMALL_BODY_BYTES


async def test_a_body_that_cannot_fit_is_refused_before_any_of_it_is_read() -> None:
    reader = BodyReader()
    reader.budget.reserve("a", MAX_SHARE_BYTES - 10)
    body = b"x" * (SMALL_BODY_BYTES + 1)
    unread = request([body], length=len(body))
    assert await refusal(reader, "a", unread) == "OVERLOADED"
    assert await unread.body() == body


async def test_a_body_over_its_own_bound_is_too_large() -> None:
    chunks = [b"x" * (MAX_BODY_BYTES // 2)] * 3
    assert await refusal(BodyReader(), "a", request(chunks)) == "BODY_TOO_LARGE"
    reader = BodyReader()
    with pytest.raises(Refused) as refused:
        async with reader.json(request([b"x" * 11], length=11), "a", expected=True, max_bytes=10):
            pass
    assert refused.value.entry.code == "BODY_TOO_LARGE"
    assert reader.budget.buffered_bytes == 0


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON", True),
        ('application/json; charset="utf-8"', True),
        ("application/json;charset=UTF-8", True),
        ("application/json ; charset=utf8; profile=x", True),
        ("application/json; profile=x", True),
        ("application/json; charset=us-ascii", True),
        ("application/json; charset=latin-1", False),
        ("application/json; charset=nonsense", False),
        ("text/plain", False),
        ("text/plain; application/json", False),
        ("application/jsonp", False),
        ("application/x-www-form-urlencoded", False),
        ("", False),
        ("json", False),
        ("application/json, text/plain", False),
        (f"application/json; charset=utf-8;{'a=b;' * 50}", True),
        # Parsing a long one would block the edge.
        (f"application/json; charset=utf-8;{'a=b;' * 4000}", False),
    ],
)
def test_a_media_type_is_read_however_it_is_spelled(content_type: str, is_json: bool) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"2")]
    checked = Request({"type": "http", "headers": headers})
    if is_json:
        check_body_type(checked)
    else:
        with pytest.raises(Refused):
            check_body_type(checked)
