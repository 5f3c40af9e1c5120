"""Tenant policies over the link, and their effect on connected and new clients."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey
from structlog.testing import capture_logs
from trunkline.v1.edge_service_pb2 import RouterEntry, TenantGone, TenantPolicy
from trunkline.v1.tenant_pb2 import OPENNESS_NOBODY, TENANT_STATE_SUSPENDED, ClientAuth, VerificationKey
from trunkline_edge import admission
from websockets.exceptions import InvalidStatus

from tests.edge.transport.edge_loopback import (
    Edge,
    ScriptedLink,
    ScriptedRouter,
    accepted,
    closed,
    connecting,
    edge_and_link,
    hears,
    running_edge,
    running_router,
    say,
)
from tests.support.declared_tenants import policy, policy_entries

KEYS = {name: OctKey.generate_key(256, {"kid": name}) for name in ("one", "two")}
PLACE = "tenant=t&agent=a&platform=web&conversation=group:team"


def tenant(*kids: str, **settings: Any) -> TenantPolicy:
    """Return the policy of tenant `t`, whose clients need a token by one of these keys."""
    made = policy("t", **{"open_to": OPENNESS_NOBODY, **settings})
    auth = ClientAuth(audiences=["chat"])
    for kid in kids:
        jwk = json.dumps(KEYS[kid].as_dict(private=True))
        auth.keys.append(VerificationKey(kid=kid, algorithm="HS256", jwk=jwk))
    made.settings.client_auth.CopyFrom(auth)
    return made


def token(kid: str = "one", **claims: Any) -> str:
    payload = {"sub": "ann", "aud": "chat", "exp": int(time.time()) + 600, **claims}
    return jwt.encode({"alg": "HS256", "kid": kid}, payload, KEYS[kid])


async def send_policy(link: ScriptedLink, entry: TenantPolicy | TenantGone) -> None:
    if isinstance(entry, TenantPolicy):
        await link.send(RouterEntry(policy=entry))
    else:
        await link.send(RouterEntry(gone=entry))


async def refusal(edge: Edge, query: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        await edge.connect(query)
    response = refused.value.response
    assert response.body is not None
    return response.status_code, json.loads(response.body)["details"][0]["reason"]


async def test_each_change_counts_for_those_who_come_after_it() -> None:
    async with edge_and_link() as (edge, link):
        client, _ = await accepted(edge, link, query=PLACE)
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        assert await refusal(edge, PLACE) == (401, "UNAUTHORIZED")
        assert await refusal(edge, f"{PLACE}&token={token('two')}") == (401, "UNAUTHORIZED")
        with_token, _ = await accepted(edge, link, topic=0, query=f"{PLACE}&token={token()}")
        # Connected clients stay.
        await client.send(say("m1"))
        assert (await link.next("frame")).frame.message.id == "m1"
        suspended = tenant("one")
        suspended.state = TENANT_STATE_SUSPENDED
        await send_policy(link, suspended)
        await edge.until(lambda: edge.runtime.tenants.policy("t").state == TENANT_STATE_SUSPENDED)  # type: ignore[union-attr]
        assert await refusal(edge, f"{PLACE}&token={token()}") == (403, "TENANT_SUSPENDED")
        await send_policy(link, TenantGone(tenant="t"))
        await edge.until(lambda: edge.runtime.tenants.policy("t") is None)
        for each in (client, with_token):
            await each.close()


async def test_who_is_refused_is_said_in_the_log_and_the_token_is_not() -> None:
    wrong = token("two")
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        with capture_logs() as lines:
            assert await refusal(edge, f"{PLACE}&token={wrong}") == (401, "UNAUTHORIZED")
        [line] = [line for line in lines if line["event"] == "a client was refused"]
        assert (line["tenant"], line["code"], line["remote_ip"]) == ("t", "UNAUTHORIZED", "127.0.0.1")
        assert not any(piece in str(lines) for piece in wrong.split("."))
        assert edge.runtime.core.counts.refused_by == {"UNAUTHORIZED": 1}


async def test_a_key_that_is_taken_away_ends_those_who_came_by_it_and_no_others() -> None:
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one", "two"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        first, _ = await accepted(edge, link, query=f"{PLACE}&token={token('one')}")
        second, _ = await accepted(edge, link, topic=0, query=f"{PLACE}&token={token('two')}")
        await send_policy(link, tenant("two", origins=["https://a.example"]))
        assert (await hears(first))["reason"] == "TOKEN_REVOKED"
        assert await closed(first) == 4502
        await second.send('{"type":"ping","id":"p"}')
        assert (await hears(second))["type"] == "pong"
        await second.close()


async def test_a_token_that_expires_ends_its_connection_unless_another_one_was_shown() -> None:
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        soon = int(time.time()) + 2
        expiring, _ = await accepted(edge, link, query=f"{PLACE}&token={token(exp=soon)}")
        renewing, number = await accepted(edge, link, topic=0, query=f"{PLACE}&token={token(exp=soon)}")
        await renewing.send(json.dumps({"type": "auth", "id": "a1", "token": token()}))
        granted = await link.next("granted")
        assert (granted.connection, granted.id) == (number, "a1")
        answer = RouterEntry()
        answer.send.connection = number
        answer.send.frame.authorized.id = "a1"
        await link.send(answer)
        assert (await hears(renewing))["type"] == "authorized"
        assert (await hears(expiring))["reason"] == "TOKEN_EXPIRED"
        assert await closed(expiring) == 4002
        assert time.time() >= soon
        await renewing.send('{"type":"ping","id":"p"}')
        assert (await hears(renewing))["type"] == "pong"
        await renewing.close()


async def test_another_users_token_is_refused_and_the_connection_goes_on() -> None:
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        client, _ = await accepted(edge, link, query=f"{PLACE}&token={token()}")
        for shown, code in ((token(sub="bob"), "FORBIDDEN"), (token()[:-3] + "AAA", "UNAUTHORIZED")):
            await client.send(json.dumps({"type": "auth", "id": "a1", "token": shown}))
            error = await hears(client)
            assert (error["id"], error["code"]) == ("a1", code)
        await client.close()


async def test_a_first_frame_may_bring_the_token_and_a_second_one_the_positions() -> None:
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        client = await edge.connect(f"{PLACE}&auth=frame&resume=frame")
        await client.send(json.dumps({"type": "auth", "id": "a1", "token": token()}))
        await client.send('{"type":"resume","positions":[]}')
        opened = await link.next("opened")
        assert (opened.user, opened.HasField("grants"), opened.HasField("resume")) == ("ann", True, True)
        await link.accept(1, opened)
        assert (await hears(client))["type"] == "connected"
        await client.close()


@pytest.mark.parametrize(
    "first",
    [
        '{"type":"ping","id":"p"}',
        '{"type":"auth","id":"a1","token":"wrong"}',
        '{"type":"resume","positions":[]}',
    ],
)
async def test_another_first_frame_or_a_wrong_token_in_it_is_the_end(first: str) -> None:
    async with edge_and_link() as (edge, link):
        await send_policy(link, tenant("one"))
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        client = await edge.connect(f"{PLACE}&auth=frame")
        await client.send(first)
        assert (await hears(client))["reason"] == "UNAUTHORIZED"
        assert await closed(client) == 4500


FETCHED = ECKey.generate_key("P-256", {"kid": "fetched"})


def fetched_token(kid: str = "fetched") -> str:
    claims = {"sub": "ann", "aud": "chat", "exp": int(time.time()) + 600}
    return jwt.encode({"alg": "ES256", "kid": kid}, claims, FETCHED)


async def test_who_waits_for_a_key_holds_up_nobody_and_what_it_says_meanwhile_is_not_lost() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def fetch(url: str) -> bytes:
        assert url == "https://keys.example/set"
        asked.set()
        await answer.wait()
        return json.dumps({"keys": [FETCHED.as_dict(private=False)]}).encode()

    async with edge_and_link(fetch=fetch) as (edge, link):
        asking = tenant("one")
        asking.settings.client_auth.jwks_url = "https://keys.example/set"
        await send_policy(link, asking)
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        waiting = await edge.connect(f"{PLACE}&auth=frame")
        await waiting.send(json.dumps({"type": "auth", "id": "a1", "token": fetched_token()}))
        await waiting.send(say("m1"))
        upgrading = connecting(edge, query=f"{PLACE}&token={fetched_token()}")
        await asked.wait()
        known, _ = await accepted(edge, link, query=f"{PLACE}&token={token()}")
        assert len(edge.runtime.core.handshakes) == 2
        answer.set()
        opened = [await link.next("opened"), await link.next("opened")]
        for each in opened:
            await link.accept(0, each)
        await link.next("frame")
        clients = [known, waiting, await upgrading]
        for client in clients[1:]:
            assert (await hears(client))["type"] == "connected"
        for client in clients:
            await client.close()


async def test_who_waits_for_a_key_that_is_not_to_be_had_is_refused() -> None:
    async with edge_and_link() as (edge, link):
        asking = tenant("one")
        asking.settings.client_auth.jwks_url = "https://keys.example/set"
        await send_policy(link, asking)
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        assert await refusal(edge, f"{PLACE}&token={fetched_token()}") == (401, "UNAUTHORIZED")
        client = await edge.connect(f"{PLACE}&auth=frame")
        await client.send(json.dumps({"type": "auth", "id": "a1", "token": fetched_token()}))
        await client.send(say("m1"))
        assert (await hears(client))["reason"] == "UNAUTHORIZED"
        assert await closed(client) == 4500


async def test_a_renewal_waits_for_its_key_and_is_refused_where_that_is_not_to_be_had() -> None:
    fetches: list[asyncio.Future[bytes]] = []

    async def fetch(_: str) -> bytes:
        fetches.append(asyncio.get_running_loop().create_future())
        return await fetches[-1]

    async with edge_and_link(fetch=fetch) as (edge, link):
        asking = tenant("one")
        asking.settings.client_auth.jwks_url = "https://keys.example/set"
        await send_policy(link, asking)
        await edge.until(lambda: edge.runtime.tenants.can_verify_tokens("t"))
        query = f"{PLACE}&token={token()}"
        clients = [(await accepted(edge, link, topic=topic, query=query))[0] for topic in (1, 0)]
        for client, shown in zip(clients, (fetched_token(), fetched_token("another")), strict=True):
            await client.send(json.dumps({"type": "auth", "id": "a1", "token": shown}))
        await edge.until(lambda: len(edge.runtime.admission._fetches) == 2 and len(fetches) == 1)
        fetches[0].set_result(json.dumps({"keys": [FETCHED.as_dict(private=False)]}).encode())
        # One goes to the router; the other is rejected once, and its client stays connected.
        assert (await link.next("granted")).id == "a1"
        error = await hears(clients[1])
        assert (error["type"], error["code"], error["id"]) == ("error", "UNAUTHORIZED", "a1")
        assert edge.runtime.admission._fetches == set()
        for client in clients:
            await client.close()


async def test_a_tenant_that_is_declared_just_now_is_waited_for_and_one_that_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "DECLARATION_DELAY_S", 3600)
    new = PLACE.replace("tenant=t", "tenant=new")
    async with edge_and_link() as (edge, link):
        await edge.until(lambda: edge.runtime.tenants.are_known)
        coming = connecting(edge, query=new)
        await edge.until(lambda: "new" in edge.runtime.admission._of_unknown_tenants)
        await send_policy(link, policy("new", origins=["https://a.example"]))
        await link.accept(1)
        client = await coming
        assert (await hears(client))["type"] == "connected"
        await client.close()
        monkeypatch.setattr(admission, "DECLARATION_DELAY_S", 0.01)
        nobody = await edge.connect(PLACE.replace("tenant=t", "tenant=nobody"))
        assert (await hears(nobody))["reason"] == "UNKNOWN_TENANT"
        assert await closed(nobody) == 4504
        assert edge.runtime.admission._of_unknown_tenants == {}


async def test_nobody_is_let_in_before_all_policies_were_told() -> None:
    router = ScriptedRouter()
    router.policies = None
    async with running_router(router=router), running_edge(router.address) as edge:
        link = await router.link()
        coming = connecting(edge, query=PLACE)
        await edge.until(lambda: len(edge.runtime.core.handshakes) == 1)
        await send_policy(link, policy("t"))
        await edge.until(lambda: edge.runtime.tenants.policy("t") is not None)
        assert edge.runtime.core.connections == {}
        await link.send(*policy_entries()[-1:])
        await link.accept()
        client = await coming
        assert (await hears(client))["type"] == "connected"
        await client.close()
