"""Calls and streams of backends beyond their tenant's rate limits."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import chain
from typing import Any

import grpc.aio
import pytest
from trunkline.v1.access_pb2 import SCOPE_ADMIN, requires
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_router.core.tenants.fair_call_queue import FairCallQueue
from trunkline_router.rpc.broadcast_service import MAX_REQUESTS_PER_STEP, slices
from trunkline_router.rpc.call_queueing import wait_in_queue
from trunkline_runtime.token_bucket import RateLimit

from tests.router.rpc.call_pacing import CALLS, Context, at_once, broadcast_to, declared, until
from tests.router.rpc.in_process_router import (
    METHODS,
    OPERATOR,
    PATIENCE_S,
    InProcessRouter,
    Metadata,
    bearer,
    ended,
    reason_of,
    request_for,
)

PUBLISHING = {"Broadcast", "OpenMessage", "ExtendMessage"}
UNARY = sorted(
    name
    for name, method in METHODS.items()
    if not method.client_streaming
    and not method.server_streaming
    and method.GetOptions().Extensions[requires] <= SCOPE_ADMIN
)


async def each_at_once(router: InProcessRouter, metadata: Metadata = (), **limits: int) -> dict[str, Any]:
    """Call each RPC with its own tenant, many at once. Returns the codes by RPC."""

    async def codes(rpc: str) -> Any:
        tenant = await declared(router, rpc, **limits)
        shown = metadata
        if not shown and METHODS[rpc].GetOptions().Extensions[requires] == SCOPE_ADMIN:
            shown = bearer((await router.key(tenant))[1])
        return await at_once(router, rpc, request_for(METHODS[rpc], tenant), shown)

    return dict(zip(UNARY, await asyncio.gather(*map(codes, UNARY)), strict=True))


async def test_each_rpc_of_a_tenant_is_rate_limited(router: InProcessRouter) -> None:
    """Two calls pass at once, two are queued, the others would wait too long."""
    for rpc, codes in (await each_at_once(router, calls_per_s=2)).items():
        assert 0 < codes["RATE_LIMITED"] <= CALLS - 4, rpc
        assert router.runtime.core.directory.tenants[rpc].refused["RATE_LIMITED"] == codes["RATE_LIMITED"]


async def test_calls_with_a_key_are_queued_before_they_are_parsed(router: InProcessRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=2)
    _, key = await router.key(tenant)
    codes = await at_once(router, "Broadcast", broadcast_to("all"), bearer(key))
    assert set(codes) == {"FORBIDDEN", "RATE_LIMITED"}
    assert router.runtime.core.directory.tenants[tenant].refused == codes


async def test_only_publishing_calls_count_as_messages(router: InProcessRouter) -> None:
    for rpc, codes in (await each_at_once(router, messages_per_s=2)).items():
        assert bool(codes["RATE_LIMITED"]) == (rpc in PUBLISHING), rpc


async def test_the_operator_is_rate_limited_only_when_publishing(router: InProcessRouter) -> None:
    limits = {"calls_per_s": 2, "messages_per_s": 2}
    for rpc, codes in (await each_at_once(router, bearer(OPERATOR), **limits)).items():
        assert bool(codes["RATE_LIMITED"]) == (rpc in PUBLISHING), rpc


async def test_opening_a_stream_is_rate_limited(router: InProcessRouter) -> None:
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


async def test_anonymous_streams_share_one_rate_limit(router: InProcessRouter) -> None:
    router.interceptor.anonymous_streams.rate = RateLimit(2, unit="streams")
    streams = [await router.begin("BroadcastMany") for _ in range(CALLS)]
    for stream in streams:
        with suppress(asyncio.InvalidStateError):
            await stream.done_writing()
    codes = Counter(await asyncio.gather(*map(ended, streams)))
    refusals = {text for code, text in codes if code == "RATE_LIMITED"}
    assert refusals == {"Rate limit exceeded: callers without an API key may send 2 streams a second"}
    assert codes["OK", ""] >= 2


async def test_a_request_is_parsed_after_its_caller_is_known(router: InProcessRouter) -> None:
    """An unparsable request is refused like any invalid one."""

    async def code(metadata: Metadata) -> str:
        call = router.channel.unary_unary("/trunkline.v1.BroadcastService/Broadcast")
        return (await ended(call(b"\xff" * 100, metadata=metadata, timeout=PATIENCE_S)))[0]

    _, key = await router.key("open")
    assert await code(bearer("wrong")) == "UNAUTHORIZED"
    assert await code(bearer(key)) == "INVALID_ARGUMENT"
    assert await code(()) == "INVALID_ARGUMENT"


async def test_tenants_do_not_wait_for_one_another(router: InProcessRouter) -> None:
    few, other = await declared(router, "few", calls_per_s=1), await declared(router, "other")
    flood = asyncio.create_task(at_once(router, "Broadcast", broadcast_to(few)))
    calls = 0
    while not flood.done():
        assert await router.code("Broadcast", broadcast_to(other)) == "OK"
        calls += 1
    assert (await flood)["RATE_LIMITED"]
    # While the flood waited for up to a second.
    assert calls > 20


async def test_a_call_whose_key_is_revoked_while_queued_is_refused(router: InProcessRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    key_id, key = await router.key(tenant)
    queue = router.runtime.core.directory.tenants[tenant].call_queue
    assert await router.code("Broadcast", broadcast_to(tenant), metadata=bearer(key)) == "OK"
    waiting = asyncio.create_task(router.code("Broadcast", broadcast_to(tenant), metadata=bearer(key)))
    await until(lambda: len(queue))
    await router.admin.revoke_key(tenant, key_id)
    assert await waiting == "UNAUTHORIZED"


async def test_a_stream_whose_key_is_revoked_while_queued_is_not_opened(router: InProcessRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    key_id, key = await router.key(tenant)
    queue = router.runtime.core.directory.tenants[tenant].call_queue
    assert await router.code("Broadcast", broadcast_to(tenant), metadata=bearer(key)) == "OK"
    stream = await router.begin("BroadcastMany", metadata=bearer(key))
    await until(lambda: len(queue))
    await router.admin.revoke_key(tenant, key_id)
    assert (await ended(stream))[0] == "UNAUTHORIZED"


async def test_a_call_queued_while_its_tenant_closes_is_refused(router: InProcessRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    queue = router.runtime.core.directory.tenants[tenant].call_queue
    assert await router.code("Broadcast", broadcast_to(tenant)) == "OK"
    waiting = asyncio.create_task(router.code("Broadcast", broadcast_to(tenant)))
    await until(lambda: len(queue))
    await router.admin.update(tenant, TenantSettings(), ["open_to"])
    assert await waiting == "UNAUTHORIZED"


async def test_a_call_cancelled_while_queued_leaves_the_queue(router: InProcessRouter) -> None:
    tenant = await declared(router, "few", calls_per_s=1)
    queue: FairCallQueue = router.runtime.core.directory.tenants[tenant].call_queue
    assert not await wait_in_queue(queue, 0, Context(None))  # type: ignore[arg-type]
    waiting = asyncio.create_task(wait_in_queue(queue, 0, Context(None)))  # type: ignore[arg-type]
    await until(lambda: len(queue))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not len(queue)
    assert queue.timer is None
    assert await wait_in_queue(queue, 0, Context(None))  # type: ignore[arg-type]


async def test_a_call_queued_for_too_long_is_refused(
    router: InProcessRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_router.core.tenants.fair_call_queue.MAX_DELAY_S", 0.1)
    tenant = await declared(router, "few", calls_per_s=1)
    assert (await at_once(router, "Broadcast", broadcast_to(tenant)))["OK"] == 1


def test_a_large_batch_is_sliced_in_order() -> None:
    batch = BroadcastManyRequest()
    for number in range(2 * MAX_REQUESTS_PER_STEP + 1):
        batch.requests.add(number=number)
    taken = [[item.number for item in piece] for piece in slices(batch.requests)]
    assert [len(piece) for piece in taken] == [MAX_REQUESTS_PER_STEP, MAX_REQUESTS_PER_STEP, 1]
    assert list(chain.from_iterable(taken)) == list(range(2 * MAX_REQUESTS_PER_STEP + 1))


def test_a_small_batch_is_one_slice() -> None:
    batch = BroadcastManyRequest()
    batch.requests.add(number=1)
    [piece] = slices(batch.requests)
    assert list(piece) == list(batch.requests)
