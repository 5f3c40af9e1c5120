"""Clients that authenticate by token, from the handshake to the expiry of the token."""

from __future__ import annotations

import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.fleet import Fleet
from tests.e2e.recording_client import RecordingClient
from tests.e2e.recording_event_client import RecordingEventClient
from tests.e2e.rejections import rejected_handshake, rejected_stream
from tests.e2e.token_clients import (
    AUDIENCE,
    EVENTS,
    PATH,
    RSA,
    SIGNER,
    TENANT,
    assert_answered,
    bearer,
    close_of,
    first_frame,
    token_client,
    token_fleet,
)
from tests.support.patience import under_load
from tests.support.signing import Signer, part, signed
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with token_fleet(tmp_path_factory.mktemp("tokens")) as started:
        yield started


def ways_of_sending(token: str) -> dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Return query, first frames and client options for a way of sending a token."""
    auth = {"type": "auth", "id": "a", "token": token}
    resume = {"type": "resume", "positions": []}
    return {
        "query": (f"&token={token}", [], {}),
        "header": ("", [], {"additional_headers": bearer(token)}),
        "subprotocol": ("", [], {"subprotocols": [f"bearer.{token}", "trunkline.v1.json"]}),
        "subprotocol alone": ("", [], {"subprotocols": [f"bearer.{token}"]}),
        "frame": ("&auth=frame", [auth], {}),
        "frame, then positions": ("&auth=frame&resume=frame", [auth, resume], {}),
    }


@pytest.mark.parametrize("way", ways_of_sending(""))
async def test_a_token_is_accepted_in_every_documented_way(edge: Process, way: str) -> None:
    query, frames, options = ways_of_sending(SIGNER.token("ann"))[way]
    async with first_frame(edge, PATH + query, *frames, **options) as (ws, first):
        assert (first["type"], first["user"]) == ("connected", "ann")
        assert "expires_at" in first
        assert ws.subprotocol in (None, "trunkline.v1.json")
        await ws.send(json.dumps({"type": "history", "id": "h"}))
        assert json.loads(await ws.recv())["id"] == "h"


async def test_positions_sent_after_the_token_are_resumed(edge: Process) -> None:
    query, [auth, _], _ = ways_of_sending(SIGNER.token("ann"))["frame, then positions"]
    async with token_client(edge, "bob", SIGNER.token("bob"), "group:resumed") as bob:
        ack = await bob.next("ack", id=await bob.say("one"))
        await bob.next("ack", id=await bob.say("two"))
    positions = [{"address": ack["address"], "position": ack["position"]}]
    path = PATH.replace("team", "resumed") + query
    async with first_frame(edge, path, auth, {"type": "resume", "positions": positions}) as (ws, first):
        assert (first["type"], first["recovered"]) == ("connected", True)
        assert json.loads(await ws.recv())["parts"][0]["text"] == "two"


@pytest.mark.parametrize("way", ["query", "header"])
async def test_an_event_stream_accepts_a_token_too(edge: Process, way: str) -> None:
    token = SIGNER.token("ann")
    options = {"token": token} if way == "query" else {}
    listener = RecordingEventClient(History(), f"{TENANT}/ann", edge.address, **options)
    if way == "header":
        rejection = await rejected_stream(edge, EVENTS, Authorization="Bearer x.y.z")
        assert (rejection.status, rejection.code) == (401, "UNAUTHORIZED")
        return
    async with listener:
        assert listener.status == 200
        async with token_client(edge, "bob", SIGNER.token("bob")) as bob:
            await bob.say("for ann")
            assert (await listener.next("message"))["parts"][0]["text"] == "for ann"


def unsigned() -> str:
    """Return a token without its signature."""
    return SIGNER.token("ann").rpartition(".")[0] + "."


def signed_with_public_key() -> str:
    """Return a token that uses a public key as an HMAC secret."""
    claims = {"sub": "ann", "tenant": TENANT, "exp": time.time() + 60}
    content = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa'})}.{part(claims)}"
    signature = hmac.digest(RSA.key.as_pem(private=False), content.encode(), "sha256")
    return f"{content}.{part(signature)}"


def algorithm_none() -> str:
    """Return an unsigned token whose header names the algorithm `none`."""
    claims = {"sub": "ann", "tenant": TENANT, "exp": time.time() + 60}
    return signed({"alg": "none"}, claims, "EdDSA", SIGNER.key).rpartition(".")[0] + "."


BAD = {
    "nothing": lambda: "",
    "expired": lambda: SIGNER.token("ann", -1),
    "not yet": lambda: SIGNER.token("ann", nbf=time.time() + 3600),
    "for ever": lambda: SIGNER.token("ann", exp=...),
    "too long": lambda: SIGNER.token("ann", 400 * 86400),
    "another tenant's": lambda: SIGNER.token("ann", tenant="demo"),
    "no tenant's": lambda: SIGNER.token("ann", tenant=...),
    "not signed": unsigned,
    "none": algorithm_none,
    "key confusion": signed_with_public_key,
    "another key by that name": lambda: Signer(TENANT).token("ann"),
    "unknown kid": lambda: Signer(TENANT, "k9").token("ann"),
    "of another tenant's key": lambda: Signer("heard", "k1").token("ann", aud="chat", iss="us"),
    "no token": lambda: "wrong",
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_token_is_rejected_before_the_upgrade_with_its_error_code(
    edge: Process, bad: str
) -> None:
    token = BAD[bad]()
    expected = (401, "TOKEN_EXPIRED" if bad == "expired" else "UNAUTHORIZED")
    options = {"additional_headers": bearer(token)} if token else {}
    by_header = await rejected_handshake(edge, PATH, **options)
    by_query = await rejected_handshake(edge, f"{PATH}&token={token}")
    of_stream = await rejected_stream(edge, f"{EVENTS}&token={token}")
    for rejection in (by_header, by_query, of_stream):
        assert (rejection.status, rejection.code) == expected
        assert rejection.headers["www-authenticate"] == "Bearer"
        assert not token or token not in rejection.text
    auth = {"type": "auth", "id": "a", "token": token}
    async with first_frame(edge, f"{PATH}&auth=frame", auth) as (ws, first):
        assert (first["type"], first["reason"]) == ("closing", expected[1])
        await ws.wait_closed()
        assert ws.close_code == (4002 if bad == "expired" else 4500)


async def test_audience_and_issuer_are_those_of_the_tenant(edge: Process) -> None:
    path = PATH.replace(TENANT, "heard")
    for claims in (
        {"aud": "other", "iss": "us"},
        {"iss": "us"},
        {"aud": "chat"},
        {"aud": "chat", "iss": "x"},
    ):
        rejection = await rejected_handshake(edge, f"{path}&token={AUDIENCE.token('ann', **claims)}")
        assert (rejection.status, rejection.code) == (401, "UNAUTHORIZED")
    good = AUDIENCE.token("ann", tenant=..., aud=["x", "chat"], iss="us")
    async with first_frame(edge, f"{path}&token={good}") as (_, first):
        assert first["user"] == "ann"


async def test_an_announced_auth_frame_must_come_first(edge: Process) -> None:
    async with first_frame(edge, f"{PATH}&auth=frame", {"type": "ping"}) as (_, first):
        assert (first["type"], first["reason"]) == ("closing", "UNAUTHORIZED")


async def test_a_shared_secret_admits_any_user_and_cannot_be_refreshed_as_another(edge: Process) -> None:
    async with token_client(edge, "whoever", "opaque") as client:
        assert client.positions
        await client.send({"type": "auth", "id": "x", "token": SIGNER.token("ann")})
        assert (await client.next("error", id="x"))["code"] == "FORBIDDEN"
        await assert_answered(client)


async def test_a_connection_ends_with_its_token_unless_it_is_refreshed(edge: Process) -> None:
    began, life_s = time.monotonic(), under_load(1.5)
    async with (
        token_client(edge, "ann", SIGNER.token("ann", life_s)) as ends,
        token_client(edge, "ann", SIGNER.token("ann", life_s)) as renews,
        RecordingEventClient(
            History(), f"{TENANT}/ann", edge.address, token=SIGNER.token("ann", life_s)
        ) as listens,
    ):
        await renews.send({"type": "auth", "id": "r", "token": SIGNER.token("ann", 600)})
        assert "expires_at" in await renews.next("authorized", id="r")
        assert await close_of(ends) == (4002, "TOKEN_EXPIRED")
        assert life_s - 0.1 <= time.monotonic() - began < life_s + under_load(2.5)
        assert await close_of(listens) == (4002, "TOKEN_EXPIRED")
        await assert_answered(renews)
        assert renews.closed is None


async def test_a_new_token_must_be_valid_and_for_the_same_user_and_address(edge: Process) -> None:
    async with token_client(edge, "ann", SIGNER.token("ann")) as ann:
        for token, code in (
            (SIGNER.token("bob"), "FORBIDDEN"),
            (SIGNER.token("ann", trunkline={"agents": ["other"]}), "FORBIDDEN"),
            (SIGNER.token("ann", -5), "TOKEN_EXPIRED"),
            (SIGNER.token("ann", tenant="demo"), "UNAUTHORIZED"),
            ("junk", "UNAUTHORIZED"),
        ):
            await ann.send({"type": "auth", "id": "x", "token": token})
            assert (await ann.next("error", id="x"))["code"] == code
            await assert_answered(ann)
        assert ann.closed is None
    async with RecordingClient(History(), "demo/ann", edge.address) as without:
        await without.send({"type": "auth", "id": "x", "token": SIGNER.token("ann")})
        assert (await without.next("error", id="x"))["code"] == "UNEXPECTED_FRAME"


async def test_a_new_token_with_fewer_permissions_removes_the_others(edge: Process) -> None:
    async with (
        token_client(edge, "ann", SIGNER.token("ann")) as ann,
        token_client(edge, "bob", SIGNER.token("bob"), "group:side") as bob,
    ):
        await ann.subscribe("side")
        less = SIGNER.token("ann", trunkline={"conversations": ["group:team"], "rights": ["subscribe"]})
        await ann.send({"type": "auth", "id": "less", "token": less})
        await ann.next("authorized", id="less")
        await bob.next("ack", id=await bob.say("not for ann any longer"))
        await ann.say("x", "m1")
        assert (await ann.next("error", id="m1"))["code"] == "FORBIDDEN"
        await ann.send({"type": "subscribe", "id": "s", "conversation": {"kind": "group", "id": "side"}})
        assert (await ann.next("error", id="s"))["code"] == "FORBIDDEN"
        assert not [frame for frame in ann.inbox if frame["type"] == "message"]
