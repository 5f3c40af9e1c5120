"""Each administrative call leaves one record and one log line: who, from where, what, before and after."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from trunkline.v1.access_pb2 import SCOPE_ADMIN, SCOPE_ATTACH, SCOPE_HISTORY, audited
from trunkline.v1.address_pb2 import CONVERSATION_KIND_PERSON
from trunkline.v1.audit_service_pb2 import AuditEntry, ListAuditEntriesRequest
from trunkline.v1.tenant_pb2 import TenantSettings, VerificationKey
from trunkline.v1.tenant_service_pb2 import (
    CreateApiKeyRequest,
    CreateTenantRequest,
    EraseUserRequest,
    RevokeTokensRequest,
    UpdateTenantRequest,
)
from trunkline_router import audit_trail
from trunkline_router.log.interface import LogUnavailable
from trunkline_router.settings import RouterSettings
from trunkline_router.tenant_reconciler import TenantReconciler
from trunkline_runtime.jwk import jwk_of

from tests.router.rpc.in_process_router import (
    EDGE,
    FAR,
    METHODS,
    OPERATOR,
    InProcessRouter,
    Metadata,
    bearer,
    in_process_router,
    request_for,
)

AS_OPERATOR = bearer(OPERATOR)
SECRET = "a secret that nobody may read anywhere"
AUDITED = [name for name, method in METHODS.items() if method.GetOptions().Extensions[audited]]


async def entries(
    router: InProcessRouter, metadata: Metadata = AS_OPERATOR, **where: Any
) -> list[AuditEntry]:
    call = await router.begin("ListAuditEntries", ListAuditEntriesRequest(**where), metadata=metadata)
    return list((await call).entries)


async def last(router: InProcessRouter, **where: Any) -> AuditEntry:
    return (await entries(router, **where))[0]


async def prepared(router: InProcessRouter, rpc: str) -> tuple[Any, str]:
    """Return a valid request for tenant `closed`, and the expected target."""
    request: Any = request_for(METHODS[rpc], "closed")
    target = "closed"
    if rpc == "CreateTenant":
        request.tenant = target = "fresh"
    elif rpc == "UpdateTenant":
        request.settings.default_agent = "helper"
        request.update_mask.paths.append("default_agent")
    elif rpc == "CreateApiKey":
        request.name, target = "ours", ""
        request.scopes.append(SCOPE_HISTORY)
    elif rpc == "RevokeApiKey":
        request.key_id, _ = await router.key("closed")
        target = request.key_id
    elif rpc == "RevokeTokens" or rpc == "EraseUser":
        request.user = target = "ann"
    elif rpc == "ReplayDeadLetters":
        request.agent = target = "echo"
        request.delivery_ids.append(7)
    elif rpc == "CloseConnections":
        request.address.user, target = "ann", "user ann of tenant closed"
    elif rpc == "ResetConversation":
        request.address.agent, request.address.platform = "echo", "web"
        request.address.conversation.kind = CONVERSATION_KIND_PERSON
        request.address.conversation.id = "ann"
        target = "agent echo on platform web in person ann"
    return request, target


@pytest.mark.parametrize("rpc", AUDITED)
async def test_each_administrative_call_is_recorded_and_logged_once(tmp_path: Path, rpc: str) -> None:
    async with in_process_router(tmp_path) as router:
        request, target = await prepared(router, rpc)
        before = len(await entries(router))
        with capture_logs() as lines:
            assert await router.code(rpc, request, metadata=AS_OPERATOR) == "OK"
        assert len(await entries(router)) == before + 1
        entry = await last(router)
        assert (entry.action, entry.actor, entry.source, entry.error) == (rpc, "operator", "127.0.0.1", "")
        assert entry.tenant == ("fresh" if rpc == "CreateTenant" else "closed")
        assert entry.target == target or (rpc == "CreateApiKey" and entry.target)
        [line] = [line for line in lines if line["event"] == "audit"]
        logged = [line[name] for name in ("action", "tenant", "actor", "source", "target")]
        assert logged == [entry.action, entry.tenant, entry.actor, entry.source, entry.target]


async def test_a_change_is_recorded_with_its_state_before_and_after(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        for agent in ("one", "two"):
            request = UpdateTenantRequest(tenant="closed", settings=TenantSettings(default_agent=agent))
            request.update_mask.paths.append("default_agent")
            await router.code("UpdateTenant", request, metadata=AS_OPERATOR)
        entry = await last(router)
        assert (json.loads(entry.before), json.loads(entry.after)) == (
            {"default_agent": "one"},
            {"default_agent": "two"},
        )
        for rpc, states in (
            ("SuspendTenant", ("ACTIVE", "SUSPENDED")),
            ("ResumeTenant", ("SUSPENDED", "ACTIVE")),
        ):
            await router.code(rpc, request_for(METHODS[rpc], "closed"), metadata=AS_OPERATOR)
            entry = await last(router)
            found = [json.loads(text)["state"] for text in (entry.before, entry.after)]
            assert found == [f"TENANT_STATE_{state}" for state in states]
        await router.code(
            "ResumeTenant", request_for(METHODS["ResumeTenant"], "closed"), metadata=AS_OPERATOR
        )
        entry = await last(router)
        assert (entry.action, entry.before, entry.after) == ("ResumeTenant", "", ""), "nothing changed"
        await router.code(
            "RevokeTokens", RevokeTokensRequest(tenant="closed", all=True), metadata=AS_OPERATOR
        )
        entry = await last(router)
        after = json.loads(entry.after)
        assert (entry.target, after["all"]) == ("all", True)
        assert 0 < after["issued_before_ms"] == after["revoked_ms"]


async def test_no_secret_is_recorded(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        for secret in (SECRET, SECRET + "!"):
            settings = TenantSettings()
            settings.client_auth.keys.append(
                VerificationKey(kid="k", algorithm="HS256", jwk=jwk_of("HS256", secret))
            )
            settings.client_auth.token_digests.append("ab" * 32)
            settings.client_auth.jwks_url = f"https://issuer.example/keys?key={secret}"
            request: Any = UpdateTenantRequest(tenant="closed", settings=settings)
            assert await router.code("UpdateTenant", request, metadata=AS_OPERATOR) == "OK"
        entry = await last(router)
        assert json.loads(entry.after)["secrets"] == "changed"
        request = CreateApiKeyRequest(tenant="closed", name="ours", scopes=[SCOPE_ADMIN])
        created = await (await router.begin("CreateApiKey", request, metadata=AS_OPERATOR))
        entry = await last(router)
        assert entry.target == created.api_key.key_id
        assert json.loads(entry.after) == {"name": "ours", "scopes": ["SCOPE_ADMIN"]}
        jwk = json.loads(jwk_of("HS256", SECRET))["k"]
        for text in map(str, await entries(router)):
            assert not any(each in text for each in (SECRET, jwk, "ab" * 32, created.secret))


async def test_actors_and_sources_are_told_apart(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        key_id, secret = await router.key("closed")
        request, _ = await prepared(router, "EraseUser")
        found = []
        for metadata in (bearer(secret), (*bearer(secret), *EDGE, *FAR), (*bearer(OPERATOR), *FAR)):
            assert await router.code("EraseUser", request, metadata=metadata) == "OK"
            entry = await last(router)
            found.append((entry.actor, entry.source))
        request, _ = await prepared(router, "ResetConversation")
        acting = (("trunkline-acting-for", "closed"), *EDGE, *FAR)
        assert await router.code("ResetConversation", request, metadata=acting) == "OK"
        entry = await last(router)
        assert (entry.actor, entry.source) == ("client", "192.0.2.1 via edge 127.0.0.1")
        await router.admin.ensure({"closed": TenantSettings(default_agent="x")}, "tenants-file")
        entry = await last(router)
        assert found == [
            (f"key:{key_id}", "127.0.0.1"),
            (f"key:{key_id}", "192.0.2.1 via edge 127.0.0.1"),
            ("operator", "127.0.0.1 for 192.0.2.1"),
        ]
        assert (entry.actor, entry.source, entry.action) == ("tenants-file", "", "UpdateTenant")


async def test_changes_of_the_tenants_file_are_recorded(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.ours]\nagent = "one"\n')
    async with in_process_router(tmp_path / "data") as router:
        reconciler = TenantReconciler(RouterSettings(tenants_file=file, tenants=["play"]), router.admin)
        await reconciler.apply()
        file.write_text('[tenants.ours]\nagent = "other"\n')
        await reconciler.refresh()
        found = [(e.actor, e.action, e.target) for e in (await entries(router))[:3]]
        assert found == [
            ("tenants-file", "UpdateTenant", "ours"),
            ("tenants-file", "CreateTenant", "ours"),
            ("environment", "CreateTenant", "play"),
        ]
        changed = await last(router)
        assert json.loads(changed.after) == {"default_agent": "other"}


async def test_a_change_that_is_not_committed_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_process_router(tmp_path) as router:
        before = await entries(router)

        async def unavailable(_: Any) -> None:
            raise LogUnavailable("disk full")

        with monkeypatch.context() as patched, capture_logs() as lines:
            patched.setattr(router.runtime.log, "register", unavailable)
            for rpc in ("CloseConnections", "EraseUser", "ResetConversation", "CreateTenant"):
                request, _ = await prepared(router, rpc)
                assert await router.code(rpc, request, metadata=AS_OPERATOR) == "LOG_UNAVAILABLE"
        assert await entries(router) == before
        assert not [line for line in lines if line["event"] == "audit"]


async def test_refused_attempts_are_recorded_at_a_bounded_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "MAX_REFUSALS", 3)
    async with in_process_router(tmp_path) as router:
        key_id, secret = await router.key("closed", SCOPE_ATTACH)
        request, _ = await prepared(router, "EraseUser")
        other, _ = await prepared(router, "CreateTenant")
        before = len(await entries(router))
        for _ in range(3):
            assert await router.code("EraseUser", request, metadata=bearer(secret)) == "FORBIDDEN"
        assert await router.code("EraseUser", request) == "UNAUTHORIZED"
        assert await router.code("CreateTenant", other, metadata=bearer("guessed")) == "UNAUTHORIZED"
        assert (
            await router.code("DeleteTenant", request_for(METHODS["DeleteTenant"], "closed"))
            == "UNAUTHORIZED"
        )
        await router.interceptor.audit.write_refusals()
        found = (await entries(router))[:-before]
        assert [(e.action, e.error, e.actor, e.tenant) for e in reversed(found)] == [
            ("EraseUser", "FORBIDDEN", f"key:{key_id}", "closed"),
            ("EraseUser", "UNAUTHORIZED", "loopback", "closed"),
            ("CreateTenant", "UNAUTHORIZED", "anonymous", ""),
        ]
        assert json.loads(found[1].after)["suppressed"] == 2
        assert await router.interceptor.audit.write_refusals() is None
        assert len(await entries(router)) == before + 3
        assert [e.error for e in await entries(router, action="EraseUser")] == ["UNAUTHORIZED", "FORBIDDEN"]


async def test_addresses_that_a_caller_makes_up_do_not_use_up_the_bound(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        request, _ = await prepared(router, "EraseUser")
        before = len(await entries(router))
        for number in range(3):
            far = (("trunkline-remote-ip", f"192.0.2.{number}"),)
            assert await router.code("EraseUser", request, metadata=far) == "UNAUTHORIZED"
        await router.interceptor.audit.write_refusals()
        assert len(await entries(router)) == before + 1
        for number in range(3):
            far = (("trunkline-remote-ip", f"192.0.2.{number}"), *EDGE)
            assert await router.code("EraseUser", request, metadata=far) == "UNAUTHORIZED"
        await router.interceptor.audit.write_refusals()
        assert len(await entries(router)) == before + 4, "an edge is believed"


async def test_a_tenants_admin_reads_its_own_entries_and_the_operator_all(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        _, admin = await router.key("closed", SCOPE_ADMIN)
        _, reader = await router.key("closed", SCOPE_HISTORY)
        assert {entry.tenant for entry in await entries(router)} == {"open", "all", "closed"}
        own = await entries(router, metadata=bearer(admin), tenant="closed")
        assert {entry.tenant for entry in own} == {"closed"}
        for metadata, tenant, code in (
            (bearer(admin), "", "FORBIDDEN"),
            (bearer(admin), "open", "FORBIDDEN"),
            (bearer(reader), "closed", "FORBIDDEN"),
            ((), "", "UNAUTHORIZED"),
            ((), "closed", "UNAUTHORIZED"),
            ((), "gone", "UNKNOWN_TENANT"),
        ):
            request = ListAuditEntriesRequest(tenant=tenant)
            assert await router.code("ListAuditEntries", request, metadata=metadata) == code, (tenant, code)


async def test_entries_outlive_their_tenant_for_the_operator_alone(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        await router.code("DeleteTenant", request_for(METHODS["DeleteTenant"], "open"), metadata=AS_OPERATOR)
        found = await entries(router, tenant="open")
        assert [entry.action for entry in found] == ["DeleteTenant", "CreateTenant"]
        assert (
            await router.code("ListAuditEntries", ListAuditEntriesRequest(tenant="open")) == "UNKNOWN_TENANT"
        )


async def test_a_later_tenant_of_the_same_name_has_its_own_entries(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        await router.code("EraseUser", EraseUserRequest(tenant="closed", user="ann"), metadata=AS_OPERATOR)
        for rpc in ("DeleteTenant", "CreateTenant"):
            await asyncio.sleep(0.002)
            await router.code(rpc, request_for(METHODS[rpc], "closed"), metadata=AS_OPERATOR)
        _, admin = await router.key("closed", SCOPE_ADMIN)
        found = await entries(router, metadata=bearer(admin), tenant="closed")
        assert [entry.action for entry in found] == ["CreateApiKey", "CreateTenant"]
        since = ListAuditEntriesRequest(tenant="closed")
        since.since.FromMilliseconds(1)
        page = await (await router.begin("ListAuditEntries", since, metadata=bearer(admin)))
        assert list(page.entries) == found
        actions = {entry.action for entry in await entries(router, tenant="closed")}
        assert {"EraseUser", "DeleteTenant"} <= actions, "the operator reads all"


async def test_a_page_of_long_entries_fits_into_a_message(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        for number in range(30):
            settings = TenantSettings(pipelines=[f"{number}-{n}-".ljust(128, "x") for n in range(1024)])
            request = UpdateTenantRequest(tenant="closed", settings=settings)
            request.update_mask.paths.append("pipelines")
            assert await router.code("UpdateTenant", request, metadata=AS_OPERATOR) == "OK"
        found: list[AuditEntry] = []
        asked = ListAuditEntriesRequest(page_size=1000)
        while not found or asked.page_token:
            page = await (await router.begin("ListAuditEntries", asked, metadata=AS_OPERATOR))
            assert page.ByteSize() < 3 << 20
            found += page.entries
            asked.page_token = page.next_page_token
        ids = [entry.id for entry in found]
        assert ids == list(range(ids[0], 0, -1))
        assert sum(entry.action == "UpdateTenant" for entry in found) == 30


async def test_an_attempt_that_names_no_tenant_is_recorded(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        assert await router.code("CreateTenant", CreateTenantRequest()) == "UNAUTHORIZED"
        assert await router.code("CreateTenant", CreateTenantRequest(), metadata=AS_OPERATOR) == (
            "INVALID_ARGUMENT"
        )
        await router.interceptor.audit.write_refusals()
        assert (await last(router)).error == "UNAUTHORIZED"


async def test_entries_come_in_pages_newest_first(tmp_path: Path) -> None:
    async with in_process_router(tmp_path) as router:
        for number in range(5):
            await router.code("CreateTenant", CreateTenantRequest(tenant=f"t{number}"), metadata=AS_OPERATOR)
        found: list[AuditEntry] = []
        request = ListAuditEntriesRequest(page_size=3, action="CreateTenant")
        while True:
            page = await (await router.begin("ListAuditEntries", request, metadata=AS_OPERATOR))
            assert len(page.entries) <= 3
            found += page.entries
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert [entry.target for entry in found] == ["t4", "t3", "t2", "t1", "t0", "closed", "all", "open"]
        request = ListAuditEntriesRequest(since=found[3].at)
        later = await (await router.begin("ListAuditEntries", request, metadata=AS_OPERATOR))
        assert {entry.id for entry in later.entries} >= {entry.id for entry in found[:4]}
        for token in ("x", "-1", "0", "²", "9" * 20):
            request = ListAuditEntriesRequest(page_token=token)
            assert await router.code("ListAuditEntries", request, metadata=AS_OPERATOR) == "INVALID_ARGUMENT"
