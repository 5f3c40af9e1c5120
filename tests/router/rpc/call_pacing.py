"""Calls beyond their rate limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message as ProtoMessage
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, TenantLimits, TenantSettings

from tests.router.rpc.in_process_router import (
    PATIENCE_S,
    InProcessRouter,
    Metadata,
)

CALLS = 8


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of what it waits for nobody tells
            await asyncio.sleep(0)


async def declared(router: InProcessRouter, tenant: str, **limits: int) -> str:
    settings = TenantSettings(open_to=OPENNESS_LOOPBACK, limits=TenantLimits(**limits))
    await router.admin.create(tenant, settings)
    return tenant


async def at_once(router: InProcessRouter, rpc: str, request: ProtoMessage, metadata: Metadata = ()) -> Any:
    """Make CALLS calls at once and count their codes."""
    return Counter(
        await asyncio.gather(*(router.code(rpc, request, metadata=metadata) for _ in range(CALLS)))
    )


def broadcast_to(tenant: str) -> BroadcastRequest:
    request = BroadcastRequest(ephemeral=True)
    request.address.tenant, request.address.agent = tenant, "a"
    request.address.platform = "web"
    request.address.conversation.kind, request.address.conversation.id = CONVERSATION_KIND_GROUP, "g"
    request.parts.add().text.text = "x"
    return request


class Context:
    """A call with a deadline."""

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s

    def time_remaining(self) -> float | None:
        return self._patience_s
