"""Calls that block the log's writer run one at a time per tenant."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from trunkline.v1.access_pb2 import SCOPE_ADMIN, requires
from trunkline.v1.tenant_service_pb2 import EraseUserRequest, ListApiKeysRequest
from trunkline_router.rpc import tenant_lock
from trunkline_router.rpc.method_rules import rule_of

from tests.router.rpc.call_pacing import CALLS, until
from tests.router.rpc.in_process_router import (
    METHODS,
    OPERATOR,
    InProcessRouter,
    Metadata,
    bearer,
)


async def test_exclusive_calls_run_one_at_a_time_per_tenant(
    router: InProcessRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_lock, "MAX_WAITING_CALLS", CALLS - 1)
    under_way, most = Counter[str](), Counter[str]()
    go_on = asyncio.Event()

    async def erase(name: str, user: str) -> tuple[int, int]:
        under_way[name] += 1
        most[name] = max(most[name], under_way[name])
        await go_on.wait()
        under_way[name] -= 1
        return 0, 0

    monkeypatch.setattr(router.admin, "erase_user", erase)

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
    queues = router.interceptor.tenant_lock._entries
    await until(lambda: [queues[tenant].calls for tenant in ("open", "all")] == [CALLS, CALLS])
    # Once another call is answered, the last one has been refused.
    assert (
        await router.code("ListApiKeys", ListApiKeysRequest(tenant="open"), metadata=bearer(OPERATOR)) == "OK"
    )
    go_on.set()
    ends = await asyncio.gather(*erasing)
    assert ends == [{"OK": CALLS, "OVERLOADED": 1}] * 2 + [{"OK": CALLS + 1}]
    assert most == {"open": 1, "all": 1, "closed": CALLS + 1}
    assert not queues


async def test_an_exclusive_call_whose_key_is_revoked_while_it_waits_is_refused(
    router: InProcessRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased: list[str] = []
    go_on = asyncio.Event()

    async def erase(name: str, user: str) -> tuple[int, int]:
        erased.append(user)
        await go_on.wait()
        return 0, 0

    monkeypatch.setattr(router.admin, "erase_user", erase)
    _, first = await router.key("open")
    key_id, second = await router.key("open")

    def erasing(user: str, key: str) -> asyncio.Task[str]:
        request = EraseUserRequest(tenant="open", user=user)
        return asyncio.create_task(router.code("EraseUser", request, metadata=bearer(key)))

    one = erasing("one", first)
    await until(lambda: erased)
    two = erasing("two", second)
    await until(lambda: router.interceptor.tenant_lock._entries["open"].calls == 2)
    await router.admin.revoke_key("open", key_id)
    go_on.set()
    assert await asyncio.gather(one, two) == ["OK", "UNAUTHORIZED"]
    assert erased == ["one"]


def test_exclusive_calls_are_those_that_administer_and_replay() -> None:
    alone = {name for name, method in METHODS.items() if rule_of(method).is_exclusive}
    by_admin = {name for name in METHODS if METHODS[name].GetOptions().Extensions[requires] == SCOPE_ADMIN}
    assert alone == {"ReplayDeadLetters", *by_admin}
    assert {"ResetConversation", "EraseUser", "CreateApiKey", "RevokeTokens"} <= alone
