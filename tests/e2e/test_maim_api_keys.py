"""API keys of maim_message's API server: addressing, isolation and authentication."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.maim_api_client import ApiClient, envelope, text_of_envelope, user_envelopes, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

TENANTS = """
[tenants.locked]
tokens = ["s3cret"]
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    data = tmp_path_factory.mktemp("maim_api_keys")
    tenants = data / "tenants.toml"
    tenants.write_text(TENANTS)
    env = {"TRUNKLINE_TENANTS": "demo,acme", "TRUNKLINE_TENANTS_FILE": str(tenants)}
    with fleet_of(data, edges=1, **env) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address, key=fleet.operator_key) as calling:
        yield calling


async def test_the_key_selects_tenant_and_agent_and_no_other_client_receives_the_message(
    fleet: Fleet, edge: Process, backend: GrpcBackend
) -> None:
    places = [
        (tenant, agent, platform)
        for tenant in ("demo", "acme")
        for agent in "ab"
        for platform in ("qq", "web")
    ]
    async with AsyncExitStack() as stack:
        for tenant in ("demo", "acme"):
            await stack.enter_async_context(worker(fleet, tenant, "a", "b"))
        clients = {
            (tenant, agent, platform): await stack.enter_async_context(
                ApiClient(edge, f"{tenant}:{agent}", platform)
            )
            for tenant, agent, platform in places
        }
        # All clients use the same msg_id.
        await asyncio.gather(*(client.say("msg_1", "/".join(place)) for place, client in clients.items()))
        for place, client in clients.items():
            assert text_of_envelope(await client.next()) == f"{place[0]}:{place[1]} heard {'/'.join(place)}"
        for place in places:
            assert backend.broadcast("/".join(place), f"to {place}").connections == 1
        for place, client in clients.items():
            assert text_of_envelope(await client.next()) == f"to {place}"
        assert backend.broadcast("acme/b", "to b").connections == 2
        for place, client in clients.items():
            assert await client.texts_so_far("msg_1") == (["to b"] if place[:2] == ("acme", "b") else [])


async def test_a_message_dim_of_another_tenant_has_no_effect(edge: Process, backend: GrpcBackend) -> None:
    forged = envelope("msg_1")
    forged["payload"]["message_dim"] = {"api_key": "acme:forged", "platform": "web"}
    async with ApiClient(edge, "demo:forger", "qq") as client:
        await client.say("msg_1", payload=forged["payload"])
    assert len(user_envelopes(backend, "demo/forger/qq")) == 1
    assert user_envelopes(backend, "acme/forged/web") == []


@pytest.mark.parametrize("path", ["/ws", "/ws/"])
async def test_the_query_takes_precedence_over_headers(
    edge: Process, backend: GrpcBackend, path: str
) -> None:
    query = "api_key=acme:query&platform=%E5%BE%AE%E4%BF%A1"
    async with ApiClient(edge, "demo:headers", "qq").by_query(query, path) as client:
        await client.say(path)
    assert [each["msg_id"] for each in user_envelopes(backend, "acme/query/微信")][-1] == path


async def test_a_header_may_be_utf_8_and_the_default_platform_is_unknown(
    edge: Process, backend: GrpcBackend
) -> None:
    as_latin_1 = "微信".encode().decode("latin-1")
    async with ApiClient(edge, "demo:names", as_latin_1) as client:
        await client.say("msg_1")
    async with ApiClient(edge, "demo:names") as client:
        await client.say("msg_2")
    assert (
        len(user_envelopes(backend, "demo/names/微信"))
        == len(user_envelopes(backend, "demo/names/unknown"))
        == 1
    )


@pytest.mark.parametrize(
    ("api_key", "platform", "status"),
    [
        ("", "qq", 401),
        ("demo", "qq", 401),
        ("demo:", "qq", 401),
        (":echo", "qq", 401),
        ("locked:echo", "qq", 401),
        ("locked:echo:wrong", "qq", 401),
        ("nobody:echo", "qq", 404),
        ("demo:echo", "a/b", 400),
        ("de mo:echo", "qq", 400),
    ],
)
async def test_an_unauthorized_client_is_rejected_before_the_upgrade(
    edge: Process, api_key: str, platform: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with ApiClient(edge, api_key, platform):
            pass
    assert refused.value.response.status_code == status


@pytest.mark.parametrize(
    ("api_key", "query", "headers"),
    [
        ("locked:echo:s3cret", "", {}),
        ("locked:echo", "token=s3cret", {}),
        ("", "api_key=locked:echo:s3cret", {}),
        ("locked:echo", "", {"authorization": "Bearer s3cret"}),
    ],
)
async def test_a_token_may_be_in_the_key_or_separate_and_is_never_stored(
    edge: Process, backend: GrpcBackend, api_key: str, query: str, headers: dict[str, str]
) -> None:
    async with ApiClient(edge, api_key, "qq", **headers).by_query(query) as client:
        await client.say("msg_1", meta={"sender_user": "locked:echo:s3cret"} if not query else {})
    kept = backend.messages("locked/echo/qq/group:qq")
    assert kept
    assert not any("s3cret" in str(message) for message in kept)
