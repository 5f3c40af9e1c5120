"""Keys that verify tokens: rotation, key sets by URL, and unavailable key sets."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient
from tests.e2e.rejections import rejected_handshake
from tests.support.jwks_server import JwksServer, running_jwks_server
from tests.support.patience import patient, under_load
from tests.support.signing import Signer
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

#: Instead of 10 s.
HANDSHAKE_S = 1.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("keys"), edges=0) as started:
        started.start_edge(TRUNKLINE_HANDSHAKE_TIMEOUT_S=str(HANDSHAKE_S))
        yield started


def path_of(signer: Signer, token: str) -> str:
    return f"/v1/connect?tenant={signer.tenant}&agent=echo&platform=web&conversation=group:team&token={token}"


def token_client(edge: Process, signer: Signer, user: str = "ann") -> RecordingClient:
    """Create a client with a token of this signer."""
    headers = {"Authorization": f"Bearer {signer.token(user)}"}
    return RecordingClient(History(), f"{signer.tenant}/{user}", edge.address, additional_headers=headers)


async def connect_when_key_known(client: RecordingClient) -> RecordingClient:
    """Connect with a key that the edge learns of within a second."""
    began = time.monotonic()
    while True:
        try:
            await client.connect()
            return client
        except InvalidStatus:
            assert time.monotonic() - began < under_load(1)
            await asyncio.sleep(0.01)


async def is_served(client: RecordingClient) -> bool:
    """Check that the router serves a client."""
    await client.send({"type": "history", "id": "still"})
    await client.next("history", id="still")
    return client.closed is None


async def close_of(client: RecordingClient) -> tuple[int, str]:
    await wait_until(lambda: client.closed, f"{client.name} is closed", timeout_s=patient(5))
    assert client.closed is not None
    return client.closed.code, client.closed.reason


def set_keys(jwks: JwksServer, *signers: Signer) -> None:
    """Set the keys of the key set."""
    jwks.says(json.dumps({"keys": [signer.jwk() for signer in signers]}).encode())


async def wait_for_fetches(jwks: JwksServer, times: int) -> None:
    await wait_until(lambda: len(jwks.requests) >= times, f"the set is read for the {times}. time")


async def test_removing_a_key_closes_exactly_the_connections_admitted_by_it(
    edge: Process, operator: OperatorClient
) -> None:
    old, new = Signer("rotates", "old", "ES256"), Signer("rotates", "new", "EdDSA")
    other = Signer("stays", "old", "ES256")
    operator.create("rotates", client_auth=client_auth([old], ["opaque"]))
    operator.create("stays", client_auth=client_auth([other]))
    wait_until_known("stays", edge)
    async with (
        token_client(edge, old) as by_old,
        token_client(edge, other) as elsewhere,
        RecordingClient(
            History(), "rotates/ann", edge.address, additional_headers={"Authorization": "Bearer opaque"}
        ) as by_secret,
    ):
        assert (await rejected_handshake(edge, path_of(new, new.token("ann")))).code == "UNAUTHORIZED"
        operator.update("rotates", client_auth=client_auth([old, new], ["opaque"]))
        by_new = await connect_when_key_known(token_client(edge, new))
        async with token_client(edge, old) as again, token_client(edge, old) as renewed:
            await renewed.send({"type": "auth", "id": "r", "token": new.token("ann")})
            await renewed.next("authorized", id="r")
            operator.update("rotates", client_auth=client_auth([new], ["opaque"]))
            for client in (by_old, again):
                assert await close_of(client) == (4502, "TOKEN_REVOKED")
            assert (await rejected_handshake(edge, path_of(old, old.token("ann")))).code == "UNAUTHORIZED"
            for client in (by_new, renewed, by_secret, elsewhere):
                assert await is_served(client)
            operator.update("rotates", client_auth=client_auth([new]))
            assert await close_of(by_secret) == (4502, "TOKEN_REVOKED")
            # Another key with the same id.
            operator.update("rotates", client_auth=client_auth([Signer("rotates", "new")]))
            assert await close_of(by_new) == (4502, "TOKEN_REVOKED")
            assert await close_of(renewed) == (4502, "TOKEN_REVOKED")
            assert await is_served(elsewhere)


async def test_only_clients_that_need_a_key_wait_for_it(edge: Process, operator: OperatorClient) -> None:
    here, there, nowhere = (Signer("reads", kid) for kid in ("here", "there", "nowhere"))
    async with running_jwks_server() as jwks:
        jwks.gate = asyncio.Event()
        set_keys(jwks, there)
        operator.create("reads", client_auth=client_auth([here], jwks_url=jwks.url()))
        await wait_for_fetches(jwks, 1)
        waits = token_client(edge, there)
        waiting = asyncio.create_task(waits.connect())
        in_vain = asyncio.create_task(rejected_handshake(edge, path_of(nowhere, nowhere.token("ann"))))
        async with token_client(edge, here) as known, token_client(edge, here) as another:
            assert await is_served(known)
            assert await is_served(another)
            assert not waiting.done()
            assert not in_vain.done()
            jwks.gate.set()
            assert (await waiting)["type"] == "connected"
            rejection = await in_vain
            assert (rejection.status, rejection.code) == (401, "UNAUTHORIZED")
            assert len(jwks.requests) == 1
            assert await is_served(waits)
            await waits.leave()


async def test_an_unavailable_key_set_delays_only_its_clients_and_not_for_ever(
    edge: Process, operator: OperatorClient
) -> None:
    here, there, elsewhere = Signer("hangs", "here"), Signer("hangs", "there"), Signer("free", "here")
    async with running_jwks_server() as jwks:
        jwks.answer, jwks.hangs = b"", True
        operator.create("hangs", client_auth=client_auth([here], jwks_url=jwks.url()))
        operator.create("free", client_auth=client_auth([elsewhere]))
        wait_until_known("free", edge)
        await wait_for_fetches(jwks, 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        needs = token_client(edge, there)
        waiting = asyncio.create_task(needs.connect())
        async with token_client(edge, here) as known, token_client(edge, elsewhere) as other:
            assert await is_served(known)
            assert await is_served(other)
            assert not waiting.done()
            assert (await waiting)["reason"] == "HANDSHAKE_TIMEOUT"
            assert loop.time() - began < HANDSHAKE_S + 2
            assert await close_of(needs) == (4004, "HANDSHAKE_TIMEOUT")
            assert await is_served(known)


async def test_a_rotated_key_set_admits_new_clients_after_one_fetch(
    edge: Process, operator: OperatorClient
) -> None:
    old, new = Signer("turns", "old", "ES256"), Signer("turns", "new", "RS256")
    async with running_jwks_server() as jwks:
        set_keys(jwks, old)
        operator.create("turns", client_auth=client_auth(jwks_url=jwks.url()))
        await wait_for_fetches(jwks, 1)
        async with token_client(edge, old) as known:
            set_keys(jwks, old, new)
            assert len(jwks.requests) == 1

            async def is_in() -> RecordingClient:
                while True:
                    # The edge fetches the key set for unknown keys at most once in 10 s.
                    client = token_client(edge, new)
                    answer = await asyncio.gather(client.connect(), return_exceptions=True)
                    if isinstance(answer[0], dict):
                        return client
                    assert await is_served(known)
                    assert len(jwks.requests) <= 2
                    await asyncio.sleep(0.2)

            async with asyncio.timeout(patient(15)):
                client = await is_in()
            assert len(jwks.requests) == 2
            assert await is_served(known)
            await client.leave()
