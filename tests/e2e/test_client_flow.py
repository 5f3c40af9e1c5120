"""Features of a client connection, from connect to disconnect, with real processes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.frame_pb2 import ClientFrame, ServerFrame
from websockets.asyncio.client import connect

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.polling import wait_until
from tests.e2e.promise_checks import assert_promises_kept
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.e2e.recording_event_client import RecordingEventClient
from tests.support.patience import patient
from tests.validators.history import History
from tests.validators.promises import assert_promises

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("flow"), edges=2) as started:
        started.start_worker("reply")
        yield started


def edges_of(fleet: Fleet) -> list[str]:
    return [process.address for process in fleet.processes if process.name == "edge"]


async def test_a_message_is_acked_delivered_on_both_edges_and_answered(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/ann", near, "group:flow") as ann,
        RecordingClient(history, "demo/bob", near, "group:flow") as bob,
        RecordingClient(history, "demo/cid", far, "group:flow") as cid,
    ):
        ident = await ann.say("hello")
        ack = await ann.next("ack", id=ident)
        assert ack["position"]["seq"] == 1
        for other in (bob, cid):
            message = await other.next("message")
            assert (message["id"], message["client_id"]) == (ack["message_id"], ident)
            assert message["author"] == {"role": "user", "user": "ann"}
            assert frame_text(message) == "hello"
        for each in (ann, bob, cid):
            reply = await each.next("message")
            assert frame_text(reply) == "re: hello"
            assert (reply["author"]["role"], reply["reply_to"]) == ("agent", ack["message_id"])
            assert reply["position"]["seq"] == 2
        await ann.say("hello", ident)
        assert await ann.next("ack", id=ident) == ack
        assert_promises_kept(fleet, history, [ann, bob, cid])


async def test_groups_are_joined_and_left(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/dan", near, "person:dan") as dan,
        RecordingClient(history, "demo/eve", far, "group:den") as eve,
    ):
        first = await eve.say("before dan joined")
        await eve.next("message")
        joined = await dan.subscribe("den")
        assert joined["position"]["seq"] == 2
        assert not joined.get("recovered")
        await dan.say("from dan", group="den")
        assert frame_text(await eve.next("message")) == "from dan"
        assert await eve.next("ack", id=first)
        await dan.send({"type": "unsubscribe", "id": "u1", "conversation": {"kind": "group", "id": "den"}})
        await dan.next("unsubscribed", id="u1")
        await dan.send(
            {
                "type": "message",
                "id": "m9",
                "parts": [{"type": "text", "text": "x"}],
                "conversation": {"kind": "group", "id": "den"},
            }
        )
        assert (await dan.next("error", id="m9"))["code"] == "NOT_SUBSCRIBED"


async def test_history_signals_reads_and_pings_work(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/fay", near, "group:club", agent="nobody") as fay,
        RecordingClient(history, "demo/gus", far, "group:club", agent="nobody") as gus,
    ):
        for number in range(5):
            await fay.next("ack", id=await fay.say(f"number {number}"))
        await gus.send({"type": "history", "id": "h1", "limit": 2})
        newest = await gus.next("history", id="h1")
        assert [frame_text(m) for m in newest["messages"]] == ["number 3", "number 4"]
        assert newest["more"] is True
        before = newest["messages"][0]["position"]
        await gus.send({"type": "history", "id": "h2", "before": before, "limit": 10})
        older = await gus.next("history", id="h2")
        assert [frame_text(m) for m in older["messages"]] == ["number 0", "number 1", "number 2"]
        assert older["more"] is False
        await gus.send({"type": "signal", "name": "typing", "data": {"on": True}})
        signal = await fay.next("signal")
        assert (signal["name"], signal["data"], signal["user"]) == ("typing", {"on": True}, "gus")
        await gus.send({"type": "read", "position": newest["messages"][1]["position"]})
        assert (await fay.next("read"))["position"]["seq"] == 5
        await gus.send({"type": "ping", "id": "p1"})
        assert await gus.next("pong", id="p1")
        assert_promises_kept(fleet, history, [fay, gus])


async def test_signals_with_a_time_to_live_end_for_everybody_who_was_sent_them(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    async with (
        RecordingClient(history, "demo/hal", near, "group:typing", agent="nobody") as hal,
        RecordingClient(history, "demo/ida", far, "group:typing", agent="nobody") as ida,
        RecordingEventClient(history, "demo/jan", far, "group:typing", agent="nobody") as jan,
    ):
        await hal.send({"type": "signal", "name": "typing", "ttl_ms": 300})
        await hal.send({"type": "signal", "name": "looking", "ttl_ms": 300_000})
        for client in (ida, jan):
            typing = await client.next("signal", name="typing")
            assert (typing["user"], typing["ttl_ms"]) == ("hal", 300)
            await client.next("signal", name="typing", end="expired")
        async with RecordingClient(history, "demo/kim", near, "group:typing", agent="nobody") as kim:
            looking = await kim.next("signal", name="looking")
            assert 0 < looking["ttl_ms"] < 300_000
            await hal.send({"type": "signal", "name": "looking", "end": "stopped"})
            for client in (ida, jan, kim):
                await client.next("signal", name="looking", user="hal", end="stopped")
            await kim.send({"type": "signal", "name": "typing", "ttl_ms": 300_000})
            for client in (hal, ida, jan):
                await client.next("signal", user="kim", ttl_ms=300_000)
        for client in (hal, ida, jan):
            await client.next("signal", user="kim", end="left")
        for bad in ({"ttl_ms": 300_001}, {"ttl_ms": 1, "end": "stopped"}, {"end": "left"}):
            await hal.send({"type": "signal", "name": "bad", **bad})
            assert (await hal.next("error"))["code"] == "INVALID_ARGUMENT"
        # A sender gets neither its own signals nor their ends.
        assert "signal" not in [frame["type"] for frame in hal.inbox]


async def test_disconnect_closes_with_1000(fleet: Fleet) -> None:
    history = History()
    async with RecordingClient(history, "demo/hal", edges_of(fleet)[0]) as hal:
        await hal.send({"type": "disconnect"})
        await wait_until(lambda: hal.closed, "the connection closes")
        assert hal.closed is not None
        assert (hal.closed.code, hal.closed.reason) == (1000, "DISCONNECTED")
    assert_promises(history)


async def test_the_protobuf_subprotocol_carries_the_same_messages(fleet: Fleet) -> None:
    history = History()
    near, far = edges_of(fleet)
    url = f"ws://{far}/v1/connect?tenant=demo&agent=nobody&platform=web&conversation=group:proto&user=ivy"
    async with (
        RecordingClient(history, "demo/jim", near, "group:proto", agent="nobody") as jim,
        connect(url, subprotocols=["trunkline.v1.proto"], compression=None) as ivy,  # type: ignore[list-item]
    ):
        assert ivy.subprotocol == "trunkline.v1.proto"

        async def received() -> ServerFrame:
            async with asyncio.timeout(patient(10)):
                return ServerFrame.FromString(await ivy.recv(decode=False))

        assert (await received()).connected.user == "ivy"
        frame = ClientFrame()
        frame.message.id = "m1"
        frame.message.parts.add().text.text = "in protobuf"
        await ivy.send(frame.SerializeToString())
        ack = (await received()).ack
        assert (ack.id, ack.position.seq) == ("m1", 1)
        assert frame_text(await jim.next("message")) == "in protobuf"
        await jim.say("in JSON")
        message = (await received()).message
        assert (message.parts[0].text.text, message.position.seq) == ("in JSON", 2)


async def test_json_is_the_default_subprotocol(fleet: Fleet) -> None:
    url = f"ws://{edges_of(fleet)[0]}/v1/connect?tenant=demo&agent=a&platform=web"
    async with connect(url, compression=None) as ws, asyncio.timeout(patient(10)):
        assert ws.subprotocol is None
        assert json.loads(await ws.recv())["type"] == "connected"
