"""Every RPC passes the guard: who may call what, by what was shown and where the call comes from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs
from trunkline.v1 import catalogue
from trunkline.v1.access_pb2 import (
    SCOPE_ADMIN,
    SCOPE_ATTACH,
    SCOPE_BROADCAST,
    SCOPE_HISTORY,
    SCOPE_OPERATOR,
    SCOPE_PRESENCE,
    Scope,
    requires,
)
from trunkline.v1.agent_service_pb2 import AttachRequest
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest
from trunkline.v1.edge_service_pb2 import LinkRequest
from trunkline.v1.presence_service_pb2 import GetStatsRequest
from trunkline_router.rpc.link_verifier import LinkVerifier
from trunkline_runtime.refusal_log import LINES_PER_S, RefusalLog

from tests.router.rpc.guarded_router import (
    ALL_SCOPES,
    EDGE,
    FAR,
    METHODS,
    OPERATOR,
    PATIENCE_S,
    GuardedRouter,
    Metadata,
    bearer,
    ended,
    guarded_router,
    request_for,
)

OF_TENANTS = {
    name: method
    for name, method in METHODS.items()
    if not method.client_streaming and method.GetOptions().Extensions[requires] <= SCOPE_ADMIN
}
REFUSED = {"UNAUTHORIZED", "FORBIDDEN"}


def scope_of(rpc: str) -> int:
    scope: int = METHODS[rpc].GetOptions().Extensions[requires]
    return scope


def acting(tenant: str) -> Metadata:
    return (*EDGE, ("trunkline-acting-for", tenant))


async def test_what_is_no_tenants_is_the_operators(router: GuardedRouter) -> None:
    _, key = await router.key("open")
    of_operator = [name for name in METHODS if scope_of(name) == SCOPE_OPERATOR]
    assert {"CreateTenant", "ListTenants", "DeleteTenant"} <= set(of_operator)
    for rpc in of_operator:
        request = request_for(METHODS[rpc], "open")
        assert await router.code(rpc, request) == "UNAUTHORIZED", rpc
        assert await router.code(rpc, request, metadata=EDGE) == "UNAUTHORIZED", rpc
        assert await router.code(rpc, request, metadata=bearer(key)) == "FORBIDDEN", rpc
        assert await router.code(rpc, request, metadata=acting("open")) == "FORBIDDEN", rpc
    assert (
        await router.code("ListTenants", request_for(METHODS["ListTenants"], ""), metadata=bearer(OPERATOR))
        == "OK"
    )


async def test_each_rpc_of_a_tenant_takes_a_key_of_it_with_its_scope(router: GuardedRouter) -> None:
    _, of_other = await router.key("all")
    for rpc, method in OF_TENANTS.items():
        request, scope = request_for(method, "closed"), scope_of(rpc)
        _, good = await router.key("closed", scope)
        _, bad = await router.key("closed", *(each for each in ALL_SCOPES if each != scope))
        assert await router.code(rpc, request) == "UNAUTHORIZED", rpc
        assert await router.code(rpc, request, metadata=EDGE) == "UNAUTHORIZED", rpc
        code, text = await router.refusal(rpc, request, metadata=bearer(bad))
        assert (code, Scope.Name(scope) in text) == ("FORBIDDEN", True), rpc  # type: ignore[arg-type]
        # Whether there is such a tenant is nobody else's business.
        elsewhere = [
            await router.refusal(rpc, request_for(method, name), metadata=bearer(of_other))
            for name in ("closed", "nobody")
        ]
        assert elsewhere[0] == elsewhere[1], rpc
        assert elsewhere[0][0] == "FORBIDDEN", rpc
        if method.server_streaming:
            # It would never end.
            continue
        for key in (OPERATOR, good):
            assert await router.code(rpc, request, metadata=bearer(key)) not in REFUSED, rpc


@pytest.mark.parametrize(
    ("tenant", "metadata", "scope", "code"),
    [
        ("open", (), SCOPE_PRESENCE, "OK"),
        ("open", (), SCOPE_ADMIN, "OK"),
        ("open", FAR, SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (("trunkline-remote-ip", "127.0.0.1"),), SCOPE_PRESENCE, "OK"),
        ("open", (("trunkline-remote-ip", "127.0.0.1"), *FAR), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (("trunkline-remote-ip", "unknown"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (("trunkline-forwarded", "1"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (("x-forwarded-for", "127.0.0.1"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (*EDGE, *FAR), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (("authorization", "Basic Zm9vOmJhcg=="),), SCOPE_PRESENCE, "OK"),
        ("all", FAR, SCOPE_PRESENCE, "OK"),
        ("all", (), SCOPE_ADMIN, "UNAUTHORIZED"),
        ("closed", (), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("nobody", (), SCOPE_PRESENCE, "UNKNOWN_TENANT"),
        ("nobody", FAR, SCOPE_PRESENCE, "UNKNOWN_TENANT"),
        ("", (), SCOPE_PRESENCE, "INVALID_ARGUMENT"),
        ("", bearer(OPERATOR), SCOPE_PRESENCE, "INVALID_ARGUMENT"),
        ("closed", acting("closed"), SCOPE_PRESENCE, "OK"),
        ("closed", acting("closed"), SCOPE_ADMIN, "FORBIDDEN"),
        ("closed", acting("open"), SCOPE_PRESENCE, "FORBIDDEN"),
        ("closed", (("trunkline-acting-for", "closed"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("closed", (*acting("closed"), *acting("open")), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", acting(""), SCOPE_PRESENCE, "UNAUTHORIZED"),
        # A proof that does not hold is none, wherever it is shown.
        ("open", bearer("tl_0123456789abcdef_wrong"), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", bearer(""), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", (("authorization", "bearer x"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", bearer("x" * 5000), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (*bearer("wrong"), *bearer(OPERATOR)), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("closed", (*bearer("wrong"), *acting("closed")), SCOPE_PRESENCE, "UNAUTHORIZED"),
    ],
)
async def test_who_shows_what_from_where(
    router: GuardedRouter, tenant: str, metadata: Metadata, scope: int, code: str
) -> None:
    rpc = "GetStats" if scope == SCOPE_PRESENCE else "ListApiKeys"
    assert await router.code(rpc, request_for(METHODS[rpc], tenant), metadata=metadata) == code


async def test_clients_of_a_dialect_may_erase_their_conversations(router: GuardedRouter) -> None:
    rpc = "ResetConversation"
    asked = request_for(METHODS[rpc], "closed")
    assert await router.code(rpc, asked, metadata=acting("closed")) == "OK"
    assert await router.code(rpc, asked, metadata=acting("open")) == "FORBIDDEN"
    assert await router.code(rpc, asked, metadata=EDGE) == "UNAUTHORIZED"


async def test_health_and_reflection_are_for_anybody(router: GuardedRouter) -> None:
    health = health_pb2_grpc.HealthStub(router.channel)
    for metadata in ((), bearer("wrong")):
        answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(router.channel).ServerReflectionInfo(
            iter([asked]), metadata=metadata
        )
        listed = await anext(aiter(call))
        assert "trunkline.v1.TenantService" in [each.name for each in listed.list_services_response.service]


async def test_what_nobody_serves_is_unimplemented(router: GuardedRouter) -> None:
    for path in ("/trunkline.v1.TenantService/Nothing", "/other.Service/Call", "/", "nothing"):
        call = router.channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Streams


def hello(tenant: str) -> AttachRequest:
    request = AttachRequest()
    request.hello.tenant = tenant
    request.hello.agents.append("a")
    request.hello.capacity = 1
    request.hello.worker_id = "w"
    request.hello.contract_minor = catalogue.CONTRACT_MINOR
    return request


def many(*tenants: str) -> BroadcastManyRequest:
    batch = BroadcastManyRequest()
    for number, tenant in enumerate(tenants, 1):
        item = batch.requests.add(number=number)
        item.request.address.tenant = tenant
        item.request.parts.add().text.text = "hi"
    return batch


async def test_only_edges_link(router: GuardedRouter) -> None:
    request = LinkRequest()
    request.hello.edge_id = "e"
    _, key = await router.key("open")
    for metadata in (bearer(OPERATOR), bearer(key)):
        assert await router.code("Link", request, metadata=metadata) == "FORBIDDEN"
    for metadata in ((), bearer("wrong")):
        assert await router.code("Link", request, metadata=metadata) == "UNAUTHORIZED"
    assert await router.code("Link", request, metadata=EDGE) == "INVALID_ARGUMENT"


async def test_a_worker_needs_its_tenants_key(router: GuardedRouter) -> None:
    _, key = await router.key("closed", SCOPE_ATTACH)
    _, without = await router.key("closed", SCOPE_HISTORY)
    assert await router.code("Attach", hello("closed")) == "UNAUTHORIZED"
    assert await router.code("Attach", hello("open"), metadata=FAR) == "UNAUTHORIZED"
    assert await router.code("Attach", hello("open"), metadata=bearer(key)) == "FORBIDDEN"
    # Refused before it has said anything.
    assert await router.code("Attach", metadata=bearer(without)) == "FORBIDDEN"
    assert await router.code("Attach", hello(""), metadata=bearer(OPERATOR)) == "INVALID_ARGUMENT"
    assert await router.code("Attach", AttachRequest()) == "HELLO_EXPECTED"
    # Once it is in it can still ask for nobody else.
    call = await router.begin("Attach", hello("closed"), metadata=bearer(key))
    assert (await call.read()).HasField("welcome")
    await call.write(hello("open"))
    assert (await ended(call))[0] == "FORBIDDEN"


async def test_each_batch_of_a_stream_is_looked_at(router: GuardedRouter) -> None:
    _, key = await router.key("closed", SCOPE_BROADCAST)
    call = await router.begin("BroadcastMany", many("closed", "", "closed"), metadata=bearer(key))
    assert await results_of(call, 3) == ["", "INVALID_ARGUMENT", ""]
    await call.write(many("closed", "nobody"))
    assert (await ended(call))[0] == "FORBIDDEN"
    assert await router.code("BroadcastMany", many("open"), metadata=bearer(key)) == "FORBIDDEN"
    # Without a proof: what is not there is told beside the others, what is not open ends it.
    call = await router.begin("BroadcastMany", many("open", "nobody"))
    assert await results_of(call, 2) == ["", "UNKNOWN_TENANT"]
    await call.write(many("open", "closed"))
    assert (await ended(call))[0] == "UNAUTHORIZED"


async def results_of(call: Any, wanted: int) -> list[str]:
    """The codes of so many results, in the order of their numbers; empty for those that were taken."""
    results: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(results) < wanted:
            results += (await call.read()).results
    return [each.error.code for each in sorted(results, key=lambda each: each.number)]


async def test_a_key_that_is_revoked_before_the_first_message_does_not_attach(router: GuardedRouter) -> None:
    key_id, key = await router.key("closed", SCOPE_ATTACH)
    call = await router.begin("Attach", metadata=bearer(key))
    async with asyncio.timeout(PATIENCE_S):
        while not router.runtime.core.api_keys.of_tenant("closed")[0].used_ms:
            await router.code("GetStats", GetStatsRequest(tenant="open"))
    await router.admin.revoke_key("closed", key_id)
    await call.write(hello("closed"))
    assert (await ended(call))[0] == "UNAUTHORIZED"


# The log


async def test_refusals_are_logged_without_a_secret(router: GuardedRouter) -> None:
    key_id, key = await router.key("closed", SCOPE_HISTORY)
    asked = GetStatsRequest(tenant="closed")
    with capture_logs() as lines:
        await router.code("GetStats", asked, metadata=bearer(key))
        await router.code("GetStats", asked, metadata=bearer("tl_1234_a-wrong-secret"))
        await router.code("GetStats", asked, metadata=(*EDGE, *FAR))
        await router.code("GetStats", asked, metadata=(("trunkline-remote-ip", "<script>"),))
        await router.code("GetStats", GetStatsRequest(tenant="nobody"))
    for line in lines:
        assert line.pop("peer").startswith("ipv4:127.0.0.1:")
        assert line.pop("event") == "a call was refused"
        assert (line.pop("rpc"), line.pop("log_level")) == ("GetStats", "warning")
    assert lines == [
        {"code": "FORBIDDEN", "key_id": key_id},
        {"code": "UNAUTHORIZED"},
        {"code": "UNAUTHORIZED", "remote_ip": "192.0.2.1"},
        {"code": "UNAUTHORIZED"},
    ]
    assert key not in str(lines)


def test_nobody_fills_the_log_by_being_refused() -> None:
    now = 10.0
    said = RefusalLog("refused", lambda: now)
    with capture_logs() as lines:
        for _ in range(1000):
            said.write(rpc="Broadcast")
        now = 11.0
        said.write(rpc="Broadcast")
        said.write(rpc="Broadcast")
    assert len(lines) == LINES_PER_S + 2
    assert [line.get("suppressed") for line in lines[-2:]] == [1000 - LINES_PER_S, None]


async def test_who_is_on_this_machine_is_an_edge_unless_a_proxy_is_between(tmp_path: Path) -> None:
    request = LinkRequest()
    request.hello.edge_id = "e"
    async with guarded_router(tmp_path, LinkVerifier()) as router:
        assert await router.code("Link", request) == "INVALID_ARGUMENT"
        for name in ("forwarded", "x-forwarded-for", "x-real-ip"):
            assert await router.code("Link", request, metadata=((name, "127.0.0.1"),)) == "UNAUTHORIZED"
