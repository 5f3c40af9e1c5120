"""The interceptor admits or refuses every RPC by credentials, permission and origin."""

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
from trunkline_runtime.line_throttle import LINES_PER_S
from trunkline_runtime.refusal_log import RefusalLog

from tests.router.rpc.in_process_router import (
    ALL_SCOPES,
    EDGE,
    FAR,
    METHODS,
    OPERATOR,
    PATIENCE_S,
    InProcessRouter,
    Metadata,
    bearer,
    ended,
    in_process_router,
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


async def test_rpcs_without_a_tenant_are_for_the_operator(router: InProcessRouter) -> None:
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


async def test_each_rpc_of_a_tenant_requires_its_key_with_the_scope(router: InProcessRouter) -> None:
    _, of_other = await router.key("all")
    for rpc, method in OF_TENANTS.items():
        request, scope = request_for(method, "closed"), scope_of(rpc)
        _, good = await router.key("closed", scope)
        _, bad = await router.key("closed", *(each for each in ALL_SCOPES if each != scope))
        assert await router.code(rpc, request) == "UNAUTHORIZED", rpc
        assert await router.code(rpc, request, metadata=EDGE) == "UNAUTHORIZED", rpc
        code, text = await router.refusal(rpc, request, metadata=bearer(bad))
        assert (code, Scope.Name(scope) in text) == ("FORBIDDEN", True), rpc  # type: ignore[arg-type]
        # Callers with a key do not learn whether other tenants exist.
        elsewhere = [
            await router.refusal(rpc, request_for(method, name), metadata=bearer(of_other))
            for name in ("closed", "nobody")
        ]
        assert elsewhere[0] == elsewhere[1], rpc
        assert elsewhere[0][0] == "FORBIDDEN", rpc
        if method.server_streaming:
            # This call would not end.
            continue
        for key in (OPERATOR, good):
            assert await router.code(rpc, request, metadata=bearer(key)) not in REFUSED, rpc


@pytest.mark.parametrize(
    ("tenant", "metadata", "scope", "code"),
    [
        ("open", (), SCOPE_PRESENCE, "OK"),
        ("open", (), SCOPE_ADMIN, "UNAUTHORIZED"),
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
        # Invalid credentials are refused even if none are required.
        ("open", bearer("tl_0123456789abcdef_wrong"), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", bearer(""), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", (("authorization", "bearer x"),), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("all", bearer("x" * 5000), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("open", (*bearer("wrong"), *bearer(OPERATOR)), SCOPE_PRESENCE, "UNAUTHORIZED"),
        ("closed", (*bearer("wrong"), *acting("closed")), SCOPE_PRESENCE, "UNAUTHORIZED"),
    ],
)
async def test_admission_by_credentials_and_origin(
    router: InProcessRouter, tenant: str, metadata: Metadata, scope: int, code: str
) -> None:
    rpc = "GetStats" if scope == SCOPE_PRESENCE else "ListApiKeys"
    assert await router.code(rpc, request_for(METHODS[rpc], tenant), metadata=metadata) == code


async def test_clients_of_a_dialect_may_reset_their_conversations(router: InProcessRouter) -> None:
    rpc = "ResetConversation"
    request = request_for(METHODS[rpc], "closed")
    assert await router.code(rpc, request, metadata=acting("closed")) == "OK"
    assert await router.code(rpc, request, metadata=acting("open")) == "FORBIDDEN"
    assert await router.code(rpc, request, metadata=EDGE) == "UNAUTHORIZED"


async def test_health_and_reflection_are_public(router: InProcessRouter) -> None:
    health = health_pb2_grpc.HealthStub(router.channel)
    for metadata in ((), bearer("wrong")):
        answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(router.channel).ServerReflectionInfo(
            iter([request]), metadata=metadata
        )
        listed = await anext(aiter(call))
        assert "trunkline.v1.TenantService" in [each.name for each in listed.list_services_response.service]


async def test_an_unknown_rpc_is_unimplemented(router: InProcessRouter) -> None:
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


async def test_only_edges_link(router: InProcessRouter) -> None:
    request = LinkRequest()
    request.hello.edge_id = "e"
    _, key = await router.key("open")
    for metadata in (bearer(OPERATOR), bearer(key)):
        assert await router.code("Link", request, metadata=metadata) == "FORBIDDEN"
    for metadata in ((), bearer("wrong")):
        assert await router.code("Link", request, metadata=metadata) == "UNAUTHORIZED"
    assert await router.code("Link", request, metadata=EDGE) == "INVALID_ARGUMENT"


async def test_a_worker_needs_a_key_of_its_tenant(router: InProcessRouter) -> None:
    _, key = await router.key("closed", SCOPE_ATTACH)
    _, without = await router.key("closed", SCOPE_HISTORY)
    assert await router.code("Attach", hello("closed")) == "UNAUTHORIZED"
    assert await router.code("Attach", hello("open"), metadata=FAR) == "UNAUTHORIZED"
    assert await router.code("Attach", hello("open"), metadata=bearer(key)) == "FORBIDDEN"
    # Refused before its first message.
    assert await router.code("Attach", metadata=bearer(without)) == "FORBIDDEN"
    assert await router.code("Attach", hello(""), metadata=bearer(OPERATOR)) == "INVALID_ARGUMENT"
    assert await router.code("Attach", AttachRequest()) == "HELLO_EXPECTED"
    # An admitted worker cannot name another tenant later.
    call = await router.begin("Attach", hello("closed"), metadata=bearer(key))
    assert (await call.read()).HasField("welcome")
    await call.write(hello("open"))
    assert (await ended(call))[0] == "FORBIDDEN"


async def test_each_batch_of_a_stream_is_checked(router: InProcessRouter) -> None:
    _, key = await router.key("closed", SCOPE_BROADCAST)
    call = await router.begin("BroadcastMany", many("closed", "", "closed"), metadata=bearer(key))
    assert await results_of(call, 3) == ["", "INVALID_ARGUMENT", ""]
    await call.write(many("closed", "nobody"))
    assert (await ended(call))[0] == "FORBIDDEN"
    assert await router.code("BroadcastMany", many("open"), metadata=bearer(key)) == "FORBIDDEN"
    # Anonymous: an unknown tenant is one failed result; a closed tenant ends the stream.
    call = await router.begin("BroadcastMany", many("open", "nobody"))
    assert await results_of(call, 2) == ["", "UNKNOWN_TENANT"]
    await call.write(many("open", "closed"))
    assert (await ended(call))[0] == "UNAUTHORIZED"


async def results_of(call: Any, wanted: int) -> list[str]:
    """Read results until `wanted` arrived. Returns their codes by number, empty for success."""
    results: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(results) < wanted:
            results += (await call.read()).results
    return [each.error.code for each in sorted(results, key=lambda each: each.number)]


async def test_a_key_that_is_revoked_before_the_first_message_does_not_attach(
    router: InProcessRouter,
) -> None:
    key_id, key = await router.key("closed", SCOPE_ATTACH)
    call = await router.begin("Attach", metadata=bearer(key))
    async with asyncio.timeout(PATIENCE_S):
        while not router.runtime.core.api_keys.of_tenant("closed")[0].used_ms:
            await router.code("GetStats", GetStatsRequest(tenant="open"))
    await router.admin.revoke_key("closed", key_id)
    await call.write(hello("closed"))
    assert (await ended(call))[0] == "UNAUTHORIZED"


# The log


async def test_refusals_are_logged_without_a_secret(router: InProcessRouter) -> None:
    key_id, key = await router.key("closed", SCOPE_HISTORY)
    request = GetStatsRequest(tenant="closed")
    with capture_logs() as lines:
        await router.code("GetStats", request, metadata=bearer(key))
        await router.code("GetStats", request, metadata=bearer("tl_1234_a-wrong-secret"))
        await router.code("GetStats", request, metadata=(*EDGE, *FAR))
        await router.code("GetStats", request, metadata=(("trunkline-remote-ip", "<script>"),))
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


def test_logged_refusals_are_rate_limited() -> None:
    now = 10.0
    refusals = RefusalLog("refused", lambda: now)
    with capture_logs() as lines:
        for _ in range(1000):
            refusals.write(rpc="Broadcast")
        now = 11.0
        refusals.write(rpc="Broadcast")
        refusals.write(rpc="Broadcast")
    assert len(lines) == LINES_PER_S + 2
    assert [line.get("suppressed") for line in lines[-2:]] == [1000 - LINES_PER_S, None]


async def test_a_local_caller_is_an_edge_unless_it_comes_through_a_proxy(tmp_path: Path) -> None:
    request = LinkRequest()
    request.hello.edge_id = "e"
    async with in_process_router(tmp_path, LinkVerifier()) as router:
        assert await router.code("Link", request) == "INVALID_ARGUMENT"
        for name in ("forwarded", "x-forwarded-for", "x-real-ip"):
            assert await router.code("Link", request, metadata=((name, "127.0.0.1"),)) == "UNAUTHORIZED"
