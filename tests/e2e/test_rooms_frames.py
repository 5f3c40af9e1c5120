"""AnsFlow: frames that clients of a room may send, and rejection of all others."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.polling import wait_until
from tests.e2e.rooms import AGENT, PLATFORM, conversation, leave, member, room, texts_received
from tests.support.patience import patient
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Rooms for AnsFlow's endpoints: each client joins the room of that name, or none.
ENDPOINTS = ["", "global_monitor", "pipeline_7", "project_7", "system", "execution_7", "logs_realtime"]
FRAME_BYTES = 4096


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("frames"), edges=0, TRUNKLINE_MAX_CONVERSATIONS="3") as started:
        started.start_edge(TRUNKLINE_FRAME_BYTES=str(FRAME_BYTES), TRUNKLINE_UNANSWERED="4")
        yield started


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_pings_are_answered_and_subscriptions_filter_at_every_endpoint(fleet: Fleet, name: str) -> None:
    async with member(History(), "ann", fleet.processes[1], name) as ann:
        with GrpcBackend(fleet.router.address) as backend:
            await ann.send({"type": "ping", "id": "p"})
            await ann.next("pong", id="p")

            async def hears() -> list[str]:
                for place in ("wanted", "other"):
                    backend.broadcast(room(place), place)
                return await texts_received(ann)

            assert await hears() == []
            joined = await ann.subscribe("wanted")
            assert joined["address"]["conversation"] == conversation("wanted")
            assert await hears() == ["wanted"]
            await leave(ann, "wanted")
            assert await hears() == []
            # None of these frames has removed it from its own room.
            backend.broadcast(room(name) if name else PLATFORM, "own")
            assert await texts_received(ann) == ["own"]


BAD = [
    ("{", "MALFORMED_FRAME"),
    ("not JSON", "MALFORMED_FRAME"),
    ("[]", "MALFORMED_FRAME"),
    ('[{"type":"ping"}]', "MALFORMED_FRAME"),
    ('"ping"', "MALFORMED_FRAME"),
    ("7", "MALFORMED_FRAME"),
    ("", "MALFORMED_FRAME"),
    ('{"type":"get_status"}', "UNKNOWN_FRAME_TYPE"),
    ('{"type":"subscribe","id":"s","conversation":{"kind":"group","id":"a/b"}}', "INVALID_ARGUMENT"),
    ('{"type":"subscribe","id":"s","conversation":{"kind":"group","id":""}}', "INVALID_ARGUMENT"),
    ('{"type":"subscribe","id":"s","conversation":{"kind":"group","id":7}}', "MALFORMED_FRAME"),
    ('{"type":"subscribe","id":"s","conversation":{"kind":"person","id":"bob"}}', "CONVERSATION_FORBIDDEN"),
    ('{"type":"unsubscribe","id":"s","conversation":{"kind":"group","id":"never"}}', "NOT_SUBSCRIBED"),
]


async def test_an_undecodable_frame_is_an_error_and_the_connection_survives(
    fleet: Fleet,
) -> None:
    async with member(History(), "ann", fleet.processes[1], "pipeline_1") as ann:
        for frame, code in BAD:
            await ann.send(frame)
            assert (await ann.next("error"))["code"] == code, frame
        await ann.send(b"\xff\xfe")
        assert (await ann.next("error"))["code"] == "MALFORMED_FRAME"
        await ann.send({"type": "ping", "id": "still there"})
        await ann.next("pong", id="still there")
        with GrpcBackend(fleet.router.address) as backend:
            assert backend.count(room("pipeline_1")) == (1, 1)


async def rejected(fleet: Fleet, query: str) -> tuple[int, str]:
    """Connect a client that must be rejected; return close code and reason."""
    async with connect(f"ws://{fleet.processes[1].address}/v1/connect?{query}", compression=None) as ws:
        async with asyncio.timeout(patient(10)):
            closing = json.loads(await ws.recv())
            with pytest.raises(ConnectionClosed):
                await ws.recv()
        assert closing["type"] == "closing"
        assert closing["code"] == ws.close_code
        return closing["code"], closing["reason"]


async def test_an_invalid_id_in_the_url_closes_with_a_code_and_leaves_no_state(fleet: Fleet) -> None:
    place = f"tenant=demo&agent={AGENT}&platform=web"
    for bad in ("group:a%2Fb", "group:", "execution_abc", "group:a:b", "room:x", "group:" + "x" * 129):
        assert await rejected(fleet, f"{place}&conversation={bad}") == (4503, "INVALID_ADDRESS")
    assert await rejected(fleet, f"{place}&conversation=group:a&user=a%20b") == (4503, "INVALID_ADDRESS")
    with GrpcBackend(fleet.router.address) as backend:
        await wait_until(lambda: backend.topic_counts("demo") == {}, "no topic has connections")


async def test_a_client_that_cannot_be_identified_is_rejected_and_never_anonymous(fleet: Fleet) -> None:
    with GrpcBackend(fleet.router.address) as backend:
        await wait_until(lambda: not backend.stats().connections, "nobody is there")
        before = backend.stats().connections_opened
        for query, answer in [
            (f"tenant=unknown&agent={AGENT}&platform=web&user=ann", (4504, "UNKNOWN_TENANT")),
            (f"agent={AGENT}&platform=web&user=ann", (4503, "INVALID_ADDRESS")),
            ("tenant=demo&platform=web&user=ann", (4503, "INVALID_ADDRESS")),
            (f"tenant=demo&agent={AGENT}&user=ann", (4503, "INVALID_ADDRESS")),
        ]:
            assert await rejected(fleet, query) == answer, query
        assert backend.stats().connections_opened == before
        # A connection without a user counts for no user and receives no user's messages.
        async with member(History(), "", fleet.processes[1], "pipeline_1"):
            assert backend.count("demo") == (1, 0)


async def test_limits_of_one_connection_are_enforced(fleet: Fleet) -> None:
    ann = member(History(), "ann", fleet.processes[1])
    limits = (await ann.connect())["limits"]
    rates = {"messages_per_s": 1000, "bytes_per_s": 32 << 20}
    assert limits == {"frame_bytes": FRAME_BYTES, "conversations": 3, "unanswered": 4, **rates}
    for name in ("a", "b", "c"):
        await ann.subscribe(name)
    await ann.send({"type": "subscribe", "id": "one too many", "conversation": conversation("d")})
    assert (await ann.next("error", id="one too many"))["code"] == "TOO_MANY_TOPICS"
    # More frames than may be unanswered: none is rejected; the edge reads as it answers.
    sent = [await ann.say(f"number {number}", group="a") for number in range(50)]
    for ident in sent:
        await ann.next("ack", id=ident)
    assert ann.seq(room("a")) == 50
    await ann.send({"type": "ping", "id": "x" * FRAME_BYTES})
    await wait_until(lambda: ann.closed, "the connection is closed")
    assert ann.closed is not None
    assert (ann.closed.code, ann.closed.reason) == (1009, "FRAME_TOO_LARGE")
