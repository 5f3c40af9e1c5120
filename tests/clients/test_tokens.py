"""Tokens of a client: presented, refreshed, expired and rejected."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import (
    AuthorizedFrame,
    ClosingFrame,
    ErrorFrame,
    SubscribedFrame,
    UnsubscribedFrame,
)
from trunkline_client import ClientSettings, Closed, GroupLeft, Refused, Unreachable
from trunkline_client.token_refresher import refresh_delay_s
from trunkline_edge import http_errors
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from tests.clients.scripted_edge import (
    ALICE,
    EPOCH_S,
    TEAM,
    EdgeSide,
    FakeTime,
    at,
    connected,
    message,
    scripted_edge,
)


def tokens() -> Any:
    """A token source that returns t1, t2, …"""
    numbers = count(1)

    async def token() -> str:
        return f"t{next(numbers)}"

    return token


def at_s(time: FakeTime, seconds: float) -> Timestamp:
    """A time this many seconds from now."""
    stamp = Timestamp()
    stamp.FromMilliseconds(round((EPOCH_S + time.now + seconds) * 1000))
    return stamp


def refusing(*reasons: catalogue.Refused) -> Callable[[ServerConnection, Request], Response | None]:
    """Rejects one handshake for each reason, and accepts those that follow."""
    left = list(reasons)

    def answer(socket: ServerConnection, request: Request) -> Response | None:
        if not left:
            return None
        rendered = http_errors.error_response(left.pop(0))
        response = socket.respond(rendered.status, "")
        response.body = rendered.body
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(rendered.body))
        return response

    return answer


async def expire(side: EdgeSide) -> None:
    """Closes a connection because its token has expired."""
    reason = catalogue.TOKEN_EXPIRED
    await side.send(closing=ClosingFrame(code=4002, reason=reason.code, message=reason.sentence()))
    await side.close(4002)


async def test_a_fresh_token_is_presented_before_each_expiry() -> None:
    time = FakeTime()
    async with scripted_edge() as edge:
        client = edge.client(time, token=tokens())
        async with connected(edge, client, expires_at=at_s(time, 1000), heartbeat_s=10_000) as (_, side):
            assert side.token == "t1"
            await time.wait_for_sleep(800)
            time.advance(800)
            first = (await side.read()).auth
            assert first.token == "t2"
            await side.send(authorized=AuthorizedFrame(id=first.id, expires_at=at_s(time, 100)))
            await time.wait_for_sleep(80)
            time.advance(80)
            second = (await side.read()).auth
            assert second.token == "t3"
            assert second.id != first.id


async def test_a_rejected_token_changes_nothing_until_the_current_one_expires() -> None:
    time = FakeTime()
    async with scripted_edge() as edge:
        client = edge.client(time, token=tokens())
        async with connected(edge, client, expires_at=at_s(time, 1000), heartbeat_s=10_000) as (_, side):
            await time.wait_for_sleep(800)
            time.advance(800)
            auth = (await side.read()).auth
            await side.send(error=ErrorFrame(id=auth.id, code="FORBIDDEN", message="another user's"))
            await side.send(message=message(1))
            events = client.events()
            assert await anext(events) == message(1)
            await expire(side)
            again = await edge.accept()
            assert again.token == "t3"
            await again.read()
            await again.welcome(1, recovered=True)
            await again.send(message=message(2))
            assert await anext(events) == message(2)


async def test_a_group_that_a_new_token_forbids_is_reported() -> None:
    async with scripted_edge() as edge, connected(edge, edge.client(token=tokens())) as (client, side):
        joining = asyncio.create_task(client.subscribe("team"))
        frame = (await side.read()).subscribe
        await side.send(subscribed=SubscribedFrame(id=frame.id, address=TEAM, position=at(5)))
        await joining
        await side.send(unsubscribed=UnsubscribedFrame(address=TEAM))
        left = await anext(client.events())
        assert isinstance(left, GroupLeft)
        assert (left.address, left.code) == (TEAM, "FORBIDDEN")
        assert [each.address for each in client.positions] == [ALICE]


async def test_a_failing_token_source_is_called_again() -> None:
    time = FakeTime()
    numbers = count(1)

    async def token() -> str:
        number = next(numbers)
        if number == 2:
            raise OSError("the identity provider is away")
        return f"t{number}"

    async with scripted_edge() as edge:
        client = edge.client(time, token=token)
        async with connected(edge, client, expires_at=at_s(time, 1000), heartbeat_s=10_000) as (_, side):
            await time.wait_for_sleep(800)
            time.advance(800)
            await time.wait_for_sleep(160)
            time.advance(160)
            assert (await side.read()).auth.token == "t3"


async def test_a_client_with_a_fixed_token_ends_with_it() -> None:
    time = FakeTime()
    async with scripted_edge() as edge:
        client = edge.client(time, token="a.b.c")
        async with connected(edge, client, expires_at=at_s(time, 1000), heartbeat_s=10_000) as (_, side):
            await expire(side)
            with pytest.raises(Closed, match="has expired") as closed:
                await anext(aiter(client))
            assert (closed.value.code, closed.value.reason) == (4002, "TOKEN_EXPIRED")
            assert 800 not in time.waits


async def test_a_fixed_token_that_expired_before_the_handshake_ends_the_client() -> None:
    async with scripted_edge(process_request=refusing(catalogue.TOKEN_EXPIRED.refused())) as edge:
        with pytest.raises(Refused, match="has expired") as refused:
            await edge.client(token="a.b.c").open()
        assert refused.value.code == "TOKEN_EXPIRED"


async def test_a_token_that_expired_before_the_handshake_is_replaced() -> None:
    async with scripted_edge(process_request=refusing(catalogue.TOKEN_EXPIRED.refused())) as edge:
        client = edge.client(token=tokens())
        async with connected(edge, client) as (_, side):
            assert side.token == "t2"


FINAL = [
    catalogue.UNAUTHORIZED.refused(problem="no token"),
    catalogue.TOKEN_REVOKED.refused(),
    catalogue.FORBIDDEN.refused(problem="not this agent"),
    catalogue.ORIGIN_FORBIDDEN.refused(origin="https://evil.example"),
    catalogue.TENANT_SUSPENDED.refused(tenant="demo"),
]


@pytest.mark.parametrize("reason", FINAL, ids=lambda reason: reason.entry.code)
async def test_a_rejected_handshake_is_raised_in_the_catalogue_words(
    reason: catalogue.Refused,
) -> None:
    async with scripted_edge(process_request=refusing(reason)) as edge:
        with pytest.raises(Refused, match=re.escape(str(reason))) as refused:
            await edge.client(token=tokens()).open()
        assert (refused.value.code, refused.value.retryable) == (reason.entry.code, False)


async def test_a_temporary_rejection_is_retried_after_its_delay() -> None:
    time = FakeTime()
    reason = catalogue.TOO_MANY_CONNECTS.refused(retry_after_ms=1500, limit="5")
    async with scripted_edge(process_request=refusing(reason)) as edge:
        opening = asyncio.create_task(edge.client(time).open())
        await time.wait_for_sleep(1.5)
        time.advance(1.5)
        await edge.accept()
        opening.cancel()


@pytest.mark.parametrize("code", [4006, 4007])
async def test_after_too_many_connections_the_client_returns_when_asked(code: int) -> None:
    time = FakeTime()
    async with scripted_edge() as edge:
        client = edge.client(time)
        opening = asyncio.create_task(client.open())
        side = await edge.accept()
        await side.send(closing=ClosingFrame(code=code, message="Too many", reconnect_after_ms=5000))
        await side.close(code)
        await time.wait_for_sleep(5.0)
        time.advance(5.0)
        again = await edge.accept()
        await again.welcome()
        await opening
        edge.end()
        await client.close()


async def test_a_client_without_any_token_is_unreachable() -> None:
    async def token() -> str:
        raise OSError("the identity provider is away")

    async with scripted_edge() as edge:
        client = edge.client(token=token, settings=ClientSettings(open_timeout_s=0))
        with pytest.raises(Unreachable, match="identity provider is away"):
            await client.open()


async def test_a_token_replaces_another_authorization_header() -> None:
    async with scripted_edge() as edge:
        settings = ClientSettings(headers={"authorization": "Basic eA==", "X-Room": "1"})
        async with connected(edge, edge.client(token="a.b.c", settings=settings)) as (_, side):
            assert side.socket.request is not None
            headers = side.socket.request.headers
            assert headers.get_all("Authorization") == ["Bearer a.b.c"]
            assert headers["X-Room"] == "1"


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_a_token_is_refreshed_before_its_end_and_not_at_once(left_s: float) -> None:
    wait_s = refresh_delay_s(left_s)
    if left_s <= 0:
        assert wait_s is None
        return
    assert wait_s is not None
    assert wait_s >= 1.0
    assert wait_s <= max(1.0, 0.8 * left_s)
    if left_s >= 10:
        assert left_s - wait_s >= 5.0 - 1e-6
