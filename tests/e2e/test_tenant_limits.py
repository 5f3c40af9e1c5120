"""What each limit of a tenant refuses, with which code, and where that is counted."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import (
    BroadcastManyRequest,
    BroadcastRequest,
    NumberedBroadcast,
    OpenMessageRequest,
)
from trunkline.v1.history_service_pb2 import ListMessagesRequest
from trunkline.v1.message_pb2 import Part, TextPart
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK

from tests.e2e.fleet import Fleet, fleet_of, metric
from tests.e2e.grpc_backend import TIMEOUT_S, GrpcBackend, address, reason_of
from tests.e2e.http_backend import HttpBackend
from tests.e2e.operator_client import OperatorClient, refused, refused_by, refused_stream, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.support.patience import patient, under_load
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes import Process

_numbers = itertools.count(1)
#: Calls at a time, or frames in a row: more than may come, also where they come slowly.
MANY = 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("limits"), edges=2) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


Limited: TypeAlias = "Callable[..., str]"


@pytest.fixture
def limited(fleet: Fleet, operator: OperatorClient) -> Limited:
    """Declares a new tenant with these limits."""

    def limit(**limits: int) -> str:
        tenant = f"limited-{next(_numbers)}"
        operator.create(tenant, open_to=OPENNESS_LOOPBACK, limits=limits)
        wait_until_known(tenant, *fleet.edges)
        return tenant

    return limit


def client(edge: Process, tenant: str, user: str = "ann", **options: Any) -> RecordingClient:
    return RecordingClient(History(), f"{tenant}/{user}", edge.address, **options)


def path_of(tenant: str, user: str = "ann", what: str = "connect") -> str:
    return f"/v1/{what}?tenant={tenant}&agent=echo&platform=web&conversation=group:team&user={user}"


async def turned_away(edge: Process, tenant: str, user: str = "ann") -> dict[str, Any]:
    """How a WebSocket is refused after the upgrade."""
    chatter = client(edge, tenant, user)
    closing = await chatter.connect()
    await wait_until(lambda: chatter.closed, "it is closed")
    assert chatter.closed is not None
    assert (closing["type"], closing["code"]) == ("closing", chatter.closed.code)
    return closing


async def said(chatter: RecordingClient) -> bool:
    """It may say something again, before long."""
    deadline = time.monotonic() + patient(5)
    while time.monotonic() < deadline:
        ident = await chatter.say("again")
        answer = await answer_to(chatter, ident)
        if answer["type"] == "ack":
            return True
        assert answer["code"] == "RATE_LIMITED"
    return False


async def answer_to(chatter: RecordingClient, ident: str) -> dict[str, Any]:
    """How a frame of this id is answered."""
    await wait_until(lambda: any(f.get("id") == ident for f in chatter.inbox), f"{ident} is answered")
    return next(f for f in chatter.inbox if f.get("id") == ident)


def refusals(backend: GrpcBackend, rpc: Any, request: Any) -> list[grpc.RpcError]:
    """How those end that are refused of MANY calls at a time."""
    calls = [rpc.future(request, timeout=TIMEOUT_S) for _ in range(MANY)]
    return [error for call in calls if (error := call.exception()) is not None]


def retry_after_s(error: grpc.RpcError) -> float:
    """When to try a call again; 0 where the refusal does not say."""
    for name, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if name == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return info.retry_delay.ToTimedelta().total_seconds()
    return 0


async def test_connections_of_a_tenant_and_of_a_user_are_counted_on_all_edges(
    fleet: Fleet, limited: Limited, backend: GrpcBackend
) -> None:
    first, second = fleet.edges
    tenant = limited(connections=3, connections_per_user=2)
    before = refused_by(second, "TOO_MANY_CONNECTIONS")
    async with client(first, tenant) as ann, client(second, tenant):
        closing = await turned_away(second, tenant)
        assert (closing["code"], closing["reason"]) == (4007, "TOO_MANY_CONNECTIONS")
        assert closing["reconnect_after_ms"] > 0
        async with client(first, tenant, "bob"):
            closing = await turned_away(second, tenant, "eve")
            assert (closing["code"], closing["reason"]) == (4007, "TOO_MANY_CONNECTIONS")
            refusal = await refused_stream(second, path_of(tenant, "eve", "events"))
            assert (refusal.status, refusal.code) == (429, "TOO_MANY_CONNECTIONS")
            assert refusal.retry_after_s > 0
            assert int(refusal.headers["retry-after"]) > 0
            await ann.leave()
            await wait_until(lambda: backend.count(tenant)[0] == 2, "one has left")
            async with client(second, tenant, "eve"):
                assert backend.count(tenant)[0] == 3
    assert backend.stats(tenant).refused["TOO_MANY_CONNECTIONS"] == 3
    assert refused_by(second, "TOO_MANY_CONNECTIONS") - before == 3


async def test_connects_a_second_are_counted_by_each_edge(edge: Process, limited: Limited) -> None:
    tenant = limited(connects_per_s=1)
    before = refused_by(edge, "TOO_MANY_CONNECTS")
    async with client(edge, tenant):
        closing = await turned_away(edge, tenant)
        assert (closing["code"], closing["reason"]) == (4006, "TOO_MANY_CONNECTS")
        assert 0 < closing["reconnect_after_ms"] <= 1000
        refusal = await refused_stream(edge, path_of(tenant, what="events"))
        assert (refusal.status, refusal.code) == (429, "TOO_MANY_CONNECTS")
        assert refusal.retry_after_s > 0
    assert refused_by(edge, "TOO_MANY_CONNECTS") - before == 2

    async def is_in() -> bool:
        chatter = client(edge, tenant)
        answer = await chatter.connect()
        await chatter.leave()
        return answer["type"] == "connected"

    async def eventually() -> bool:
        began = time.monotonic()
        while not await is_in():
            assert time.monotonic() - began < patient(5)
        return True

    assert await eventually()


async def test_frames_of_one_connection_are_limited_and_it_goes_on(edge: Process, limited: Limited) -> None:
    tenant = limited(connection_messages_per_s=5)
    before = refused_by(edge, "RATE_LIMITED")
    async with client(edge, tenant) as ann, client(edge, tenant, "bob") as bob:
        for number in range(10):
            await ann.say(f"word {number}", f"m{number}")
        error = await ann.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        # The other connection has a bucket of its own.
        await bob.next("ack", id=await bob.say("meanwhile"))
        assert [await ann.next("ack", id=f"m{n}") for n in range(5)]
        # It is read from again, and may go on.
        assert await said(ann)
    assert refused_by(edge, "RATE_LIMITED") > before


async def test_bytes_of_one_connection_are_limited(edge: Process, limited: Limited) -> None:
    # A bucket of bytes holds 12 MiB at least: who may send a message may send the largest there is.
    tenant = limited(connection_bytes_per_s=MIB)
    async with client(edge, tenant) as ann:
        parts = [{"type": "text", "text": "x" * 250_000}] * 4
        for number in range(14):
            await ann.send({"type": "message", "id": f"m{number}", "parts": parts})
        await wait_until(lambda: [f for f in ann.inbox if f["type"] == "error"], "it is too much")
        error = await ann.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        assert "this connection" in error["message"]


@pytest.mark.parametrize("garbage", ["{", '{"type":"ping","id":5}', '{"type":"nothing"}'])
async def test_what_cannot_be_read_counts_like_what_can(
    edge: Process, limited: Limited, garbage: str
) -> None:
    tenant = limited(connection_messages_per_s=5)
    async with client(edge, tenant) as ann:
        for _ in range(20):
            await ann.send(garbage)
        await ann.next("error", code="RATE_LIMITED")


async def test_clients_and_backends_of_a_tenant_share_what_it_may_send(
    fleet: Fleet, edge: Process, limited: Limited, backend: GrpcBackend
) -> None:
    tenant = limited(messages_per_s=4)
    async with client(edge, tenant) as ann, client(edge, tenant, "bob") as bob:
        for number in range(2):
            await ann.say(f"word {number}")
        for number in range(MANY):
            await bob.say(f"word {number}")
        error = await bob.next("error")
        assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
        assert error["retry_after_ms"] > 0
        assert tenant in error["message"]
    request = BroadcastRequest(
        address=address(tenant), parts=[Part(text=TextPart(text="too"))], ephemeral=True
    )
    refused = refusals(backend, backend.broadcasting.Broadcast, request)
    # A second's worth waits for its turn, but for what only clients may send.
    assert 0 < len(refused) < MANY
    for error in refused:
        assert reason_of(error) == "RATE_LIMITED"
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 <= retry_after_s(error) <= MANY / 4
    body = {"address": {"agent": "echo"}, "parts": [{"text": {"text": "too"}}]}
    with HttpBackend(edge.address, tenant) as by_http, ThreadPoolExecutor(MANY) as callers:
        responses = list(callers.map(lambda _: by_http.http.post("/messages", json=body), range(MANY)))
    [response, *_] = [each for each in responses if each.status_code != 200]
    assert response.status_code == 429
    assert response.json()["details"][0]["reason"] == "RATE_LIMITED"
    assert int(response.headers["retry-after"]) >= 1
    assert backend.stats(tenant).refused["RATE_LIMITED"] >= 2


async def test_backends_that_call_one_by_one_are_slowed_down_and_not_refused(
    limited: Limited, backend: GrpcBackend
) -> None:
    tenant = limited(messages_per_s=20)
    began = time.monotonic()
    for number in range(40):
        backend.broadcast(tenant, str(number))
    assert time.monotonic() - began >= (40 - 20) / 20 * 0.9
    assert not backend.stats(tenant).refused


async def test_calls_of_a_tenant_are_limited_whatever_they_ask_for(
    edge: Process, limited: Limited, backend: GrpcBackend
) -> None:
    tenant = limited(calls_per_s=4)
    request = ListMessagesRequest(address=address(f"{tenant}/echo/web/group:team"))
    refused = refusals(backend, backend.history_service.ListMessages, request)
    assert 0 < len(refused) <= MANY - 4
    assert {reason_of(error) for error in refused} == {"RATE_LIMITED"}
    limit, whose = f"4 calls or {128 * MIB} bytes a second", f"the backends of tenant {tenant}"
    assert {error.details() for error in refused} == {
        catalogue.RATE_LIMITED.sentence(limit=limit, whose=whose)
    }
    # That is of no concern to clients.
    async with client(edge, tenant) as ann:
        await ann.next("ack", id=await ann.say("meanwhile"))


async def test_what_two_edges_let_pass_the_router_counts_together(
    fleet: Fleet, limited: Limited, backend: GrpcBackend
) -> None:
    first, second = fleet.edges
    tenant = limited(messages_per_s=6)
    async with client(first, tenant) as ann, client(second, tenant, "bob") as bob:
        errors: list[dict[str, Any]] = []
        deadline = time.monotonic() + TIMEOUT_S
        # Where this takes a second, as much may come again.
        while not errors:
            assert time.monotonic() < deadline
            said = [(each, await each.say(f"word {number}")) for number in range(5) for each in (ann, bob)]
            answers = [await answer_to(each, ident) for each, ident in said]
            errors = [answer for answer in answers if answer["type"] == "error"]
        assert {error["code"] for error in errors} == {"RATE_LIMITED"}
        assert all(error["retry_after_ms"] > 0 for error in errors)
    assert backend.stats(tenant).refused["RATE_LIMITED"] >= 1


async def test_bytes_of_a_tenant_are_limited(edge: Process, limited: Limited, backend: GrpcBackend) -> None:
    tenant = limited(bytes_per_s=MIB)
    parts = [Part(text=TextPart(text="x" * (MIB // 4)))] * 28
    request = BroadcastRequest(address=address(tenant), parts=parts, ephemeral=True)
    backend.broadcasting.Broadcast(request, timeout=TIMEOUT_S)
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcasting.Broadcast(request, timeout=TIMEOUT_S)
    assert reason_of(refusal.value) == "RATE_LIMITED"
    assert 0 < retry_after_s(refusal.value) < 5


async def test_a_frame_that_is_too_large_ends_the_connection(edge: Process, limited: Limited) -> None:
    tenant = limited(frame_bytes=2048)
    async with client(edge, tenant) as ann:
        await ann.next("ack", id=await ann.say("x" * 1000))
        await ann.say("x" * 3000)
        await wait_until(lambda: ann.closed, "it is closed")
        assert ann.closed is not None
        assert (ann.closed.code, ann.closed.reason) == (1009, "FRAME_TOO_LARGE")
        assert "2048" in ann.closing["message"]
    assert metric(edge, 'trunkline_edge_connections_closed_total{cause="FRAME_TOO_LARGE"}') == 1


async def test_conversations_of_one_connection_are_limited(
    edge: Process, limited: Limited, backend: GrpcBackend
) -> None:
    tenant = limited(conversations=2)
    async with client(edge, tenant) as ann:
        assert ann.places
        await ann.subscribe("one")
        await ann.subscribe("two")
        await ann.send({"type": "subscribe", "id": "s", "conversation": {"kind": "group", "id": "three"}})
        error = await ann.next("error", id="s")
        assert (error["code"], error["retryable"]) == ("TOO_MANY_TOPICS", False)
        assert "2" in error["message"]
    assert backend.stats(tenant).refused["TOO_MANY_TOPICS"] == 1


async def test_open_messages_of_a_tenant_are_limited(limited: Limited, backend: GrpcBackend) -> None:
    tenant = limited(open_messages=1)
    request = OpenMessageRequest(address=address(f"{tenant}/echo/web/group:team"), key="one")
    backend.broadcasting.OpenMessage(request, timeout=TIMEOUT_S)
    request.key = "two"
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcasting.OpenMessage(request, timeout=TIMEOUT_S)
    assert reason_of(refusal.value) == "TOO_MANY_OPEN_MESSAGES"
    assert retry_after_s(refusal.value) > 0


async def test_what_is_refused_of_backends_is_counted(limited: Limited, backend: GrpcBackend) -> None:
    tenant = limited()
    with pytest.raises(grpc.RpcError) as refusal:
        backend.broadcast(tenant, "nobody is there", require_connection=True)
    assert reason_of(refusal.value) == "NO_ACTIVE_CONNECTION"
    assert backend.stats(tenant).refused["NO_ACTIVE_CONNECTION"] == 1


async def test_broadcast_many_is_read_no_faster_rather_than_refused(
    limited: Limited, backend: GrpcBackend
) -> None:
    tenant = limited(messages_per_s=40)
    parts = [Part(text=TextPart(text="paced"))]
    request = BroadcastRequest(address=address(tenant), parts=parts)
    batches = [
        BroadcastManyRequest(
            requests=[NumberedBroadcast(number=n * 10 + k, request=request) for k in range(10)]
        )
        for n in range(10)
    ]
    began = time.monotonic()
    answers = list(backend.broadcasting.BroadcastMany(iter(batches), timeout=TIMEOUT_S))
    took_s = time.monotonic() - began
    results = [result for answer in answers for result in answer.results]
    assert sorted(result.number for result in results) == list(range(100))
    assert not [result.error for result in results if result.HasField("error")]
    # One second's worth may come at once, and of what comes then the last batch is not waited for.
    assert took_s >= (100 - 40 - 10) / 40 * 0.9
    assert "RATE_LIMITED" not in backend.stats(tenant).refused


async def test_a_limit_that_changes_holds_for_those_who_are_connected_within_a_second(
    edge: Process, operator: OperatorClient, limited: Limited
) -> None:
    tenant = limited(connection_messages_per_s=1000)
    async with client(edge, tenant) as ann:
        for number in range(20):
            await ann.next("ack", id=await ann.say(f"word {number}"))
        operator.update(tenant, limits={"connection_messages_per_s": 2, "conversations": 1})
        began = time.monotonic()
        while (answer := await answer_to(ann, await ann.say("more")))["type"] == "ack":
            assert time.monotonic() - began < under_load(1)
        assert answer["code"] == "RATE_LIMITED"
        operator.update(tenant, limits={})
        ann.inbox.clear()
        assert await said(ann)
        answers = [await answer_to(ann, await ann.say(f"again {number}")) for number in range(20)]
        assert {answer["type"] for answer in answers} == {"ack"}


@pytest.mark.parametrize("what", ["connect", "events"])
async def test_web_pages_connect_from_where_the_tenant_says(
    edge: Process, operator: OperatorClient, what: str
) -> None:
    tenant = f"pages-{what}"
    operator.create(tenant, open_to=OPENNESS_LOOPBACK, origins=["https://example.com"])
    wait_until_known(tenant, edge)
    path = path_of(tenant, what=what)
    before = refused_by(edge, "ORIGIN_FORBIDDEN")
    bad = (
        "https://example.org",
        "http://example.com",
        "https://example.com:8443",
        "null",
        "http://localhost",
    )
    for origin in bad:
        if what == "events":
            refusal = await refused_stream(edge, path, origin=origin)
        else:
            refusal = await refused(edge, path, additional_headers={"Origin": origin})
        assert (refusal.status, refusal.code) == (403, "ORIGIN_FORBIDDEN")
        assert refusal.retry_after_s == 0
    assert refused_by(edge, "ORIGIN_FORBIDDEN") - before == len(bad)
    for headers in ({}, {"Origin": "https://example.com"}):
        async with client(edge, tenant, additional_headers=headers) as ann:
            assert ann.places
