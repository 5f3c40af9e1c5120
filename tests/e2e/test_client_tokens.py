"""The Python client with expiring, missing and revoked tokens, and above a rate limit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from trunkline_client import Client, Closed, Refused, text_of

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient, client_auth
from tests.support.patience import patient, under_load
from tests.support.signing import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANT = "acme"
SIGNER = Signer(TENANT)
SLOW = Signer("slow")
LIFE_S = under_load(4)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("client-tokens")) as started:
        with OperatorClient(started.router.address, started.operator_key, started.edges) as calling:
            calling.create(TENANT, client_auth=client_auth([SIGNER]))
            calling.create("slow", client_auth=client_auth([SLOW]), limits={"connection_messages_per_s": 10})
        yield started


def client_of(fleet: Fleet, token: Any, tenant: str = TENANT, conversation: str = "group:team") -> Client:
    place = {"tenant": tenant, "agent": "echo", "platform": "web", "conversation": conversation}
    return Client(f"ws://{fleet.edges[0].address}", **place, token=token)


async def test_a_client_that_refreshes_its_token_keeps_its_connection(fleet: Fleet) -> None:
    given = 0

    async def token() -> str:
        nonlocal given
        given += 1
        return SIGNER.token("ann", lifetime_s=LIFE_S)

    async with client_of(fleet, token) as client:
        first = client.connection_id
        until = time.monotonic() + 2 * LIFE_S
        while time.monotonic() < until:
            await client.send("still here")
            await asyncio.sleep(0.5)
        assert client.connection_id == first
    assert given >= 3


async def test_a_client_with_a_fixed_token_is_closed_when_it_expires(fleet: Fleet) -> None:
    async with client_of(fleet, SIGNER.token("ann", lifetime_s=2)) as client:
        with pytest.raises(Closed, match="has expired") as closed:
            async with asyncio.timeout(patient(10)):
                await anext(aiter(client))
    assert (closed.value.code, closed.value.reason) == (4002, "TOKEN_EXPIRED")


async def test_a_client_without_a_token_is_rejected_with_the_reason(fleet: Fleet) -> None:
    with pytest.raises(Refused, match="a token must be given") as refused:
        await client_of(fleet, "").open()
    assert (refused.value.code, refused.value.retryable) == ("UNAUTHORIZED", False)


async def test_a_client_whose_token_is_revoked_is_closed(fleet: Fleet, operator: OperatorClient) -> None:
    token = SIGNER.token("eve")
    async with client_of(fleet, token) as client:
        await asyncio.to_thread(operator.revoke, TENANT, user="eve")
        with pytest.raises(Closed, match="was revoked") as closed:
            async with asyncio.timeout(patient(10)):
                await anext(aiter(client))
    assert closed.value.reason == "TOKEN_REVOKED"
    with pytest.raises(Refused, match="was revoked"):
        await client_of(fleet, token).open()


async def test_a_client_above_its_rate_limit_sends_every_message_once(fleet: Fleet) -> None:
    place = {"tenant": "slow", "conversation": "group:many"}
    async with client_of(fleet, SLOW.token("ann"), **place) as ann:
        async with client_of(fleet, SLOW.token("bob"), **place) as bob:
            texts = [f"word {number}" for number in range(40)]
            acks = await asyncio.gather(*(bob.send(word, timeout_s=patient(30)) for word in texts))
            assert len({ack.position.seq for ack in acks}) == len(texts)
        events = aiter(ann)
        async with asyncio.timeout(patient(10)):
            received = [text_of(await anext(events)) for _ in texts]
    assert sorted(received) == sorted(texts)
