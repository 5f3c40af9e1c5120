"""Permissions of tokens, and their revocation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.e2e.fleet import Fleet
from tests.e2e.operator_client import OperatorClient
from tests.e2e.polling import wait_until
from tests.e2e.recording_event_client import RecordingEventClient
from tests.e2e.rejections import rejected_handshake, rejected_stream
from tests.e2e.token_clients import (
    EVENTS,
    PATH,
    SIGNER,
    TENANT,
    assert_answered,
    close_of,
    first_frame,
    token_client,
    token_fleet,
)
from tests.support.patience import under_load
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes import Process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with token_fleet(tmp_path_factory.mktemp("tokens")) as started:
        yield started


async def test_a_token_is_valid_for_its_user_agents_platforms_and_conversations(edge: Process) -> None:
    for path, claims in (
        (f"{PATH}&user=bob", {}),
        (PATH, {"agents": ["other"]}),
        (PATH, {"platforms": ["qq"]}),
        (PATH, {"conversations": ["group:x"]}),
        (PATH, {"conversations": []}),
        (PATH.replace("group:team", "person:bob"), {}),
    ):
        rejection = await rejected_handshake(edge, f"{path}&token={SIGNER.token('ann', trunkline=claims)}")
        assert (rejection.status, rejection.code) == (403, "FORBIDDEN"), (path, claims)
        rejection = await rejected_stream(
            edge, f"{path.replace('connect', 'events')}&token={SIGNER.token('ann', trunkline=claims)}"
        )
        assert (rejection.status, rejection.code) == (403, "FORBIDDEN")
    async with token_client(edge, "ann", SIGNER.token("ann"), "person:ann") as ann:
        await assert_answered(ann)


#: For each permission: a frame that needs it, and whether the frame is answered.
NEEDED: dict[str, list[dict[str, Any]]] = {
    "publish": [
        {"type": "message", "id": "f", "parts": [{"type": "text", "text": "hi"}]},
        {"type": "edit", "id": "f", "message_id": "m", "parts": [{"type": "text", "text": "hi"}]},
        {"type": "recall", "id": "f", "message_id": "m"},
    ],
    "subscribe": [{"type": "subscribe", "id": "f", "conversation": {"kind": "group", "id": "x"}}],
    "history": [{"type": "history", "id": "f"}],
    "cancel": [{"type": "cancel", "id": "f", "client_id": "c"}],
}


@pytest.mark.parametrize("right", NEEDED)
async def test_each_permission_is_needed_for_exactly_its_frames(edge: Process, right: str) -> None:
    others = [each for each in NEEDED if each != right]
    async with (
        token_client(edge, "ann", SIGNER.token("ann", trunkline={"rights": [right]}), "group:r") as has,
        token_client(edge, "ann", SIGNER.token("ann", trunkline={"rights": others}), "group:r") as lacks,
    ):
        for frame in NEEDED[right]:
            await has.send(frame)
            await lacks.send(frame)
            answer: list[dict[str, Any]] = []
            await wait_until(lambda: [f for f in has.inbox if f.get("id") == "f"], f"{frame} is answered")
            answer = [f for f in has.inbox if f.get("id") == "f"]
            assert answer[0].get("code") != "FORBIDDEN"
            assert (await lacks.next("error", id="f"))["code"] == "FORBIDDEN"
            has.inbox.clear()


async def test_without_permission_to_receive_nothing_is_delivered(edge: Process) -> None:
    deaf = SIGNER.token("ann", trunkline={"rights": ["publish", "history"]})
    async with token_client(edge, "ann", deaf) as ann, token_client(edge, "bob", SIGNER.token("bob")) as bob:
        await bob.next("ack", id=await bob.say("for those who may"))
        await ann.next("ack", id=await ann.say("but she may say this"))
        await bob.next("message")
        await ann.next("ack", id=await ann.say("and this"))
        assert not [frame for frame in ann.inbox if frame["type"] == "message"]


def later_than_issued_tokens() -> Timestamp:
    """Return a timestamp that is later than all tokens issued so far."""
    before = Timestamp()
    before.FromMilliseconds(int(time.time() * 1000) + 1)
    return before


#: Revocation request for a user whose token has the id `<name>-1`.
REVOKED: dict[str, Callable[[], dict[str, Any]]] = {
    "user": lambda: {"user": "user-revoked"},
    "token_id": lambda: {"token_id": "token_id-1"},
    "issued_before": lambda: {"user": "issued_before-revoked", "issued_before": later_than_issued_tokens()},
    "all": lambda: {"all": True},
}


@pytest.mark.parametrize("which", REVOKED)
async def test_exactly_the_revoked_tokens_are_closed_and_rejected(
    edge: Process, operator: OperatorClient, which: str
) -> None:
    user = f"{which}-revoked"
    old = SIGNER.token(user, jti=f"{which}-1")
    other = SIGNER.token("else" if which == "user" else user, iat=time.time() + 5, jti=f"{which}-2")
    async with (
        token_client(edge, user, old) as revoked,
        RecordingEventClient(History(), f"{TENANT}/{user}", edge.address, token=old) as listening,
        token_client(edge, user if which != "user" else "else", other) as good,
    ):
        began = time.monotonic()
        assert operator.revoke(TENANT, **REVOKED[which]()) >= 2
        assert await close_of(revoked) == (4502, "TOKEN_REVOKED")
        assert await close_of(listening) == (4502, "TOKEN_REVOKED")
        rejection = await rejected_handshake(edge, f"{PATH}&token={old}")
        assert (rejection.status, rejection.code) == (401, "TOKEN_REVOKED")
        rejection = await rejected_stream(edge, f"{EVENTS}&token={old}")
        assert (rejection.status, rejection.code) == (401, "TOKEN_REVOKED")
        assert time.monotonic() - began < under_load(2)
        await assert_answered(good)
        assert good.closed is None
    fresh = SIGNER.token(user, iat=time.time() + 5)
    async with first_frame(edge, f"{PATH}&token={fresh}") as (_, first):
        assert first["type"] == "connected"


async def test_a_revoked_token_cannot_be_used_to_refresh(edge: Process, operator: OperatorClient) -> None:
    async with token_client(edge, "renews", SIGNER.token("renews", jti="kept")) as client:
        operator.revoke(TENANT, token_id="gone")
        await client.send({"type": "auth", "id": "x", "token": SIGNER.token("renews", jti="gone")})
        assert (await client.next("error", id="x"))["code"] == "TOKEN_REVOKED"
        await assert_answered(client)
