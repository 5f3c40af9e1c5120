"""Streams end at once, with the reason, when their permission is revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from trunkline.v1.presence_service_pb2 import GetStatsRequest
from trunkline.v1.tenant_pb2 import TENANT_STATE_SUSPENDED

from tests.router.rpc.in_process_router import (
    OPERATOR,
    PATIENCE_S,
    InProcessRouter,
    Metadata,
    bearer,
    ended,
    opening,
)
from tests.support.patience import under_load

END_S = 1.0


async def opened(router: InProcessRouter, rpc: str, tenant: str, metadata: Metadata) -> Any:
    """Open a stream, and wait until the router has registered it."""
    before = len(router.runtime.streams)
    call = await router.begin(rpc, opening(rpc, tenant), metadata=metadata)
    async with asyncio.timeout(PATIENCE_S):
        while len(router.runtime.streams) == before:
            await router.code("GetStats", GetStatsRequest(tenant="open"))
    return call


async def suspend(router: InProcessRouter, key_id: str) -> None:
    await router.admin.set_state("closed", TENANT_STATE_SUSPENDED)


async def delete(router: InProcessRouter, key_id: str) -> None:
    await router.admin.delete("closed")


async def revoke(router: InProcessRouter, key_id: str) -> None:
    await router.admin.revoke_key("closed", key_id)


@pytest.mark.parametrize("rpc", ["Attach", "BroadcastMany", "WatchConnections"])
@pytest.mark.parametrize(
    ("take_away", "code"),
    [(revoke, "UNAUTHORIZED"), (suspend, "TENANT_SUSPENDED"), (delete, "UNKNOWN_TENANT")],
)
async def test_a_stream_ends(
    router: InProcessRouter, rpc: str, take_away: Callable[[InProcessRouter, str], Awaitable[None]], code: str
) -> None:
    key_id, key = await router.key("closed")
    _, other_key = await router.key("all")
    _, same_tenants = await router.key("closed")
    mine = await opened(router, rpc, "closed", bearer(key))
    others = [await opened(router, rpc, "all", bearer(other_key))]
    if take_away is revoke:
        others.append(await opened(router, rpc, "closed", bearer(same_tenants)))
    await take_away(router, key_id)
    async with asyncio.timeout(under_load(END_S)):
        assert (await ended(mine))[0] == code
    assert not any(call.done() for call in others)
    for call in others:
        call.cancel()


@pytest.mark.parametrize("rpc", ["Attach", "WatchConnections"])
async def test_a_suspended_tenants_streams_end_for_every_caller(router: InProcessRouter, rpc: str) -> None:
    by_operator = await opened(router, rpc, "closed", bearer(OPERATOR))
    await suspend(router, "")
    async with asyncio.timeout(under_load(END_S)):
        assert (await ended(by_operator))[0] == "TENANT_SUSPENDED"


async def test_the_operators_broadcasts_continue_for_other_tenants(router: InProcessRouter) -> None:
    call = await opened(router, "BroadcastMany", "closed", bearer(OPERATOR))
    await suspend(router, "")
    assert not call.done()
    call.cancel()
