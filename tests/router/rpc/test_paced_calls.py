"""Backends that call, or send, faster than their tenant may."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message as ProtoMessage
from guarded_router import (
    METHODS,
    OPERATOR,
    PATIENCE_S,
    GuardedRouter,
    Metadata,
    bearer,
    ended,
    reason_of,
    request_for,
)
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_HISTORY, requires
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, Address
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest, BroadcastRequest
from trunkline.v1.presence_service_pb2 import GetStatsRequest
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, TenantLimits, TenantSettings
from trunkline.v1.tenant_service_pb2 import EraseUserRequest, ListApiKeysRequest

from router.core.access import Caller, Kind
from router.core.turns import REFUSALS_PER_S, Resting, Turns
from router.rpc import status
from router.rpc import turns as turns_of_calls
from router.rpc.broadcast import MOST_AT_ONCE, pieces
from router.rpc.rules import rule_of
from router.rpc.turns import rest, turn
from router.shell import Call
from shared.rates import Rate

CALLS = 8
SAYING = {"Broadcast", "OpenMessage", "ExtendMessage"}
UNARY = sorted(
    name
    for name, method in METHODS.items()
    if not method.client_streaming
    and not method.server_streaming
    and method.GetOptions().Extensions[requires] <= SCOPE_ADMIN
)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of what it waits for nobody tells
            await asyncio.sleep(0)


async def declared(router: GuardedRouter, tenant: str, **limits: int) -> str:
    settings = TenantSettings(open_to=OPENNESS_LOOPBACK, limits=TenantLimits(**limits))
    await router.registry.create(tenant, settings)
    return tenant


async def at_once(router: GuardedRouter, rpc: str, request: ProtoMessage, metadata: Metadata = ()) -> Any:
    """How often CALLS calls end how."""
    return Counter(
        await asyncio.gather(*(router.code(rpc, request, metadata=metadata) for _ in range(CALLS)))
    )


def said(tenant: str) -> BroadcastRequest:
    request = BroadcastRequest(ephemeral=True)
    request.address.tenant, request.address.agent = tenant, "a"
    request.address.platform = "web"
    request.address.conversation.kind, request.address.conversation.id = CONVERSATION_KIND_GROUP, "g"
    request.parts.add().text.text = "x"
    return request


async def each_at_once(router: GuardedRouter, metadata: Metadata = (), **limits: int) -> dict[str, Any]:
    """The same for each RPC, with a tenant of its own."""

    async def codes(rpc: str) -> Any:
        tenant = await declared(router, rpc, **limits)
        return await at_once(router, rpc, request_for(METHODS[rpc], tenant), metadata)

    return dict(zip(UNARY, await asyncio.gather(*map(codes, UNARY)), strict=True))


async def test_each_rpc_of_a_tenant_takes_its_turn(router: GuardedRouter) -> None:
    """Two go on at once, two wait for their turn, and the others would come too late."""
    for rpc, codes in (await each_at_once(router, calls_per_s=2)).items():
        assert 0 < codes["RATE_LIMITED"] <= CALLS - 4, rpc
        assert router.shell.core.directory.tenants[rpc].refused["RATE_LIMITED"] == codes["RATE_LIMITED"]


async def test_calls_with_a_key_take_their_turns_before_they_are_read(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=2)
    _, key = await router.key(tenant)
    codes = await at_once(router, "Broadcast", said("all"), bearer(key))
    assert set(codes) == {"FORBIDDEN", "RATE_LIMITED"}
    assert router.shell.core.directory.tenants[tenant].refused == codes


async def test_calls_that_say_something_are_messages_and_others_are_not(router: GuardedRouter) -> None:
    for rpc, codes in (await each_at_once(router, messages_per_s=2)).items():
        assert bool(codes["RATE_LIMITED"]) == (rpc in SAYING), rpc


async def test_the_operator_waits_only_where_it_says_something(router: GuardedRouter) -> None:
    limits = {"calls_per_s": 2, "messages_per_s": 2}
    for rpc, codes in (await each_at_once(router, bearer(OPERATOR), **limits)).items():
        assert bool(codes["RATE_LIMITED"]) == (rpc in SAYING), rpc


async def test_streams_take_a_turn_when_they_are_opened(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=2)
    _, key = await router.key(tenant)
    streams = [await router.begin("BroadcastMany", metadata=bearer(key)) for _ in range(CALLS)]
    for stream in streams:
        await stream.done_writing()
    codes = []
    for stream in streams:
        try:
            assert await stream.read() is grpc.aio.EOF
        except grpc.aio.AioRpcError as error:
            codes.append(reason_of(error))
    assert set(codes) == {"RATE_LIMITED"}
    assert 0 < len(codes) <= CALLS - 4


async def test_streams_of_all_who_show_no_key_take_turns_together(router: GuardedRouter) -> None:
    router.guard.strangers_streams.rate = Rate(2, of="streams")
    streams = [await router.begin("BroadcastMany") for _ in range(CALLS)]
    for stream in streams:
        with suppress(asyncio.InvalidStateError):
            await stream.done_writing()
    codes = Counter(await asyncio.gather(*map(ended, streams)))
    refusals = {text for code, text in codes if code == "RATE_LIMITED"}
    assert refusals == {"More than 2 streams a second were sent by those who show no key; slow down"}
    assert codes["OK", ""] >= 2


async def test_a_request_is_read_when_it_is_known_who_sent_it(router: GuardedRouter) -> None:
    """What cannot be read is refused as anything else that is wrong."""

    async def code(metadata: Metadata) -> str:
        call = router.channel.unary_unary("/trunkline.v1.BroadcastService/Broadcast")
        return (await ended(call(b"\xff" * 100, metadata=metadata, timeout=PATIENCE_S)))[0]

    _, key = await router.key("open")
    assert await code(bearer("wrong")) == "UNAUTHORIZED"
    assert await code(bearer(key)) == "INVALID_ARGUMENT"
    assert await code(()) == "INVALID_ARGUMENT"


async def test_who_has_a_key_and_asks_for_more_holds_up_its_own_tenant(
    router: GuardedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[Resting] = []

    async def resting(where: Resting, size: int, context: Any) -> None:
        rested.append(where)

    monkeypatch.setattr(status, "rest", resting)
    _, key = await router.key("open", SCOPE_HISTORY)
    assert await router.code("Broadcast", said("open"), metadata=bearer(key)) == "FORBIDDEN"
    assert await router.code("GetStats", GetStatsRequest(tenant="all"), metadata=bearer(key)) == "FORBIDDEN"
    assert rested == [router.shell.core.directory.tenants["open"].resting] * 2


async def test_tenants_do_not_wait_for_one_another(router: GuardedRouter) -> None:
    few, other = await declared(router, "few", calls_per_s=1), await declared(router, "other")
    flood = asyncio.create_task(at_once(router, "Broadcast", said(few)))
    calls = 0
    while not flood.done():
        assert await router.code("Broadcast", said(other)) == "OK"
        calls += 1
    assert (await flood)["RATE_LIMITED"]
    # While one of the flood has waited for a second.
    assert calls > 20


async def test_whose_key_is_taken_away_while_it_waits_does_not_get_its_turn(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    key_id, key = await router.key(tenant)
    turns = router.shell.core.directory.tenants[tenant].calls
    assert await router.code("Broadcast", said(tenant), metadata=bearer(key)) == "OK"
    waiting = asyncio.create_task(router.code("Broadcast", said(tenant), metadata=bearer(key)))
    await until(lambda: len(turns))
    await router.registry.revoke_key(tenant, key_id)
    assert await waiting == "UNAUTHORIZED"


async def test_a_stream_whose_key_is_taken_away_while_it_waits_is_not_opened(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    key_id, key = await router.key(tenant)
    turns = router.shell.core.directory.tenants[tenant].calls
    assert await router.code("Broadcast", said(tenant), metadata=bearer(key)) == "OK"
    stream = await router.begin("BroadcastMany", metadata=bearer(key))
    await until(lambda: len(turns))
    await router.registry.revoke_key(tenant, key_id)
    assert (await ended(stream))[0] == "UNAUTHORIZED"


async def test_a_tenant_that_is_closed_while_a_call_waits_is_closed_to_it(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    turns = router.shell.core.directory.tenants[tenant].calls
    assert await router.code("Broadcast", said(tenant)) == "OK"
    waiting = asyncio.create_task(router.code("Broadcast", said(tenant)))
    await until(lambda: len(turns))
    await router.registry.update(tenant, TenantSettings(), ["open_to"])
    assert await waiting == "UNAUTHORIZED"


async def test_whoever_is_refused_without_end_is_told_later_and_later(router: GuardedRouter) -> None:
    """So that refusing takes little of the router, whoever it is that is refused."""
    began, many = time.monotonic(), REFUSALS_PER_S + 30
    calls = [router.code("Broadcast", said("open"), metadata=bearer("wrong")) for _ in range(many)]
    assert set(await asyncio.gather(*calls)) == {"UNAUTHORIZED"}
    assert time.monotonic() - began >= 30 / REFUSALS_PER_S


def test_who_is_told_that_the_router_stops_is_told_so_at_once() -> None:
    strangers = Resting()
    call = Call(Caller(Kind.ANYBODY), strangers)
    assert call.rests_in(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is strangers
    assert call.rests_in(catalogue.ROUTER_UNAVAILABLE.refused()) is None
    by_edge = Call(Caller(Kind.EDGE), strangers)
    assert by_edge.rests_in(catalogue.UNKNOWN_TENANT.refused(tenant="t")) is strangers


async def test_only_such_refusals_rest_as_nothing_else_holds_back(
    router: GuardedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[Resting] = []

    async def resting(where: Resting, size: int, context: Any) -> None:
        rested.append(where)

    monkeypatch.setattr(status, "rest", resting)
    few = router.shell.core.directory.tenants[await declared(router, "few", calls_per_s=1)]
    assert (await at_once(router, "Broadcast", said("few")))["RATE_LIMITED"] == len(rested)
    assert set(rested) == {few.resting}
    rested.clear()
    assert await router.code("Broadcast", BroadcastRequest(address=Address(tenant="all"))) != "OK"
    assert (
        await router.code("DeleteTenant", request_for(METHODS["DeleteTenant"], ""), metadata=bearer(OPERATOR))
        == "INVALID_ARGUMENT"
    )
    assert not rested
    for tenant in ("unknown", "closed", ""):
        assert await router.code("Broadcast", said(tenant)) != "OK"
    assert len(rested) == 3
    assert few.resting not in rested


async def test_of_calls_that_hold_up_all_there_is_one_at_a_time_of_each_tenant(
    router: GuardedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_of_calls, "MAX_QUEUED", CALLS - 1)
    under_way, most = Counter[str](), Counter[str]()
    go_on = asyncio.Event()

    async def erase(name: str, user: str) -> tuple[int, int]:
        under_way[name] += 1
        most[name] = max(most[name], under_way[name])
        await go_on.wait()
        under_way[name] -= 1
        return 0, 0

    monkeypatch.setattr(router.registry, "erase_user", erase)

    async def codes(tenant: str, metadata: Metadata) -> Any:
        request = EraseUserRequest(tenant=tenant, user="u")
        calls = (router.code("EraseUser", request, metadata=metadata) for _ in range(CALLS + 1))
        return Counter(await asyncio.gather(*calls))

    _, key = await router.key("open")
    _, other = await router.key("all")
    erasing = [
        asyncio.create_task(codes(*by))
        for by in (("open", bearer(key)), ("all", bearer(other)), ("closed", bearer(OPERATOR)))
    ]
    await until(lambda: under_way == {"open": 1, "all": 1, "closed": CALLS + 1})
    queues = router.guard.one_by_one._queues
    await until(lambda: [queues[tenant].calls for tenant in ("open", "all")] == [CALLS, CALLS])
    # The last has been refused by when another is answered.
    assert (
        await router.code("ListApiKeys", ListApiKeysRequest(tenant="open"), metadata=bearer(OPERATOR)) == "OK"
    )
    go_on.set()
    ends = await asyncio.gather(*erasing)
    assert ends == [{"OK": CALLS, "OVERLOADED": 1}] * 2 + [{"OK": CALLS + 1}]
    assert most == {"open": 1, "all": 1, "closed": CALLS + 1}
    assert not queues


async def test_whose_key_is_taken_away_while_it_waits_for_another_call_does_nothing(
    router: GuardedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased: list[str] = []
    go_on = asyncio.Event()

    async def erase(name: str, user: str) -> tuple[int, int]:
        erased.append(user)
        await go_on.wait()
        return 0, 0

    monkeypatch.setattr(router.registry, "erase_user", erase)
    _, first = await router.key("open")
    key_id, second = await router.key("open")

    def erasing(user: str, key: str) -> asyncio.Task[str]:
        request = EraseUserRequest(tenant="open", user=user)
        return asyncio.create_task(router.code("EraseUser", request, metadata=bearer(key)))

    one = erasing("one", first)
    await until(lambda: erased)
    two = erasing("two", second)
    await until(lambda: router.guard.one_by_one._queues["open"].calls == 2)
    await router.registry.revoke_key("open", key_id)
    go_on.set()
    assert await asyncio.gather(one, two) == ["OK", "UNAUTHORIZED"]
    assert erased == ["one"]


def test_calls_that_hold_up_all_are_those_that_administer_and_replay() -> None:
    alone = {name for name, method in METHODS.items() if rule_of(method).alone}
    by_admin = {name for name in METHODS if METHODS[name].GetOptions().Extensions[requires] == SCOPE_ADMIN}
    assert alone == {"ReplayDeadLetters", *by_admin}
    assert {"ResetConversation", "EraseUser", "CreateApiKey", "RevokeTokens"} <= alone


class Context:
    """A call whose caller waits so long."""

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s

    def time_remaining(self) -> float | None:
        return self._patience_s


async def test_a_refusal_arrives_while_its_caller_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    resting = Resting()
    for _ in range(500):
        resting.begin(0, time.monotonic())
    await rest(resting, 0, Context(1.0))  # type: ignore[arg-type]
    await rest(resting, 0, Context(None))  # type: ignore[arg-type]
    assert slept == [pytest.approx(0.8), pytest.approx(5.01)]


async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing_behind(router: GuardedRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    turns: Turns = router.shell.core.directory.tenants[tenant].calls
    assert not await turn(turns, 0, Context(None))  # type: ignore[arg-type]
    waiting = asyncio.create_task(turn(turns, 0, Context(None)))  # type: ignore[arg-type]
    await until(lambda: len(turns))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not len(turns)
    assert turns.timer is None
    assert await turn(turns, 0, Context(None))  # type: ignore[arg-type]


async def test_a_call_whose_turn_does_not_come_is_refused(
    router: GuardedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.core.turns.MAX_DELAY_S", 0.1)
    tenant = await declared(router, "few", calls_per_s=1)
    assert (await at_once(router, "Broadcast", said(tenant)))["OK"] == 1


def test_a_large_batch_is_taken_in_pieces_in_order() -> None:
    batch = BroadcastManyRequest()
    for number in range(2 * MOST_AT_ONCE + 1):
        batch.requests.add(number=number)
    taken = [[item.number for item in piece.requests] for piece in pieces(batch)]
    assert [len(piece) for piece in taken] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert list(chain.from_iterable(taken)) == list(range(2 * MOST_AT_ONCE + 1))


def test_a_small_batch_is_one_piece() -> None:
    batch = BroadcastManyRequest()
    batch.requests.add(number=1)
    [piece] = pieces(batch)
    assert piece is batch
