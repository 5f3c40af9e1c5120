"""Sessions of Engine.IO by long polling, by WebSocket, and from the one to the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import websockets
from trunkline_edge.transport.engine_io_packets import MAX_PACKETS

from tests.edge.transport.edge_loopback import (
    PATIENCE_S,
    Edge,
    ScriptedRouter,
    closed,
    edge_and_link,
    received,
    running_edge,
    running_router,
)
from tests.edge.transport.engine_io_client import API, ROUTER, Polling, connected, event, polling, value_of
from tests.support.declared_tenants import policy

transports = pytest.mark.parametrize(
    "transports", [["polling"], ["websocket"], ["polling", "websocket"]], ids=lambda names: "-".join(names)
)


async def next_of(queue: asyncio.Queue[Any]) -> Any:
    return await asyncio.wait_for(queue.get(), PATIENCE_S)


def envelope(text: str = "hello", msg_id: str = "m1") -> dict[str, Any]:
    return {"ver": 1, "msg_id": msg_id, "type": "sys_std", "payload": text}


@transports
async def test_python_socketio_sends_and_receives(transports: list[str]) -> None:
    async with edge_and_link() as (edge, link), connected(edge, link, transports) as (client, events, number):
        assert client.transport() == transports[-1]
        await client.emit("message", envelope())
        frame = (await link.next("frame")).frame.message
        assert (frame.id, frame.parts[0].text.text) == ("m1", "hello")
        await link.ack(number, "m1")
        name, ack = await next_of(events)
        assert (name, ack["type"], ack["meta"]["acked_msg_id"]) == ("message", "sys_ack", "m1")
        await link.publish(1, "look " * 50_000)
        name, pushed = await next_of(events)
        assert pushed["payload"]["message_segment"]["data"] == "look " * 50_000
        await client.disconnect()
        await edge.until(lambda: not edge.runtime.core.connections)
        assert len(edge.runtime.engine_io) == 0


@transports
async def test_an_event_is_acknowledged_once_its_message_is_stored(transports: list[str]) -> None:
    async with edge_and_link() as (edge, link), connected(edge, link, transports) as (client, _, number):
        calling = asyncio.ensure_future(client.call("message", envelope(), timeout=PATIENCE_S))
        await link.next("frame")
        assert not calling.done()
        await link.ack(number, "m1")
        assert await calling is None


@transports
async def test_attachments_and_other_events_are_refused_in_words(transports: list[str]) -> None:
    async with edge_and_link() as (edge, link), connected(edge, link, transports) as (client, events, _):
        for name, value, problem in (("message", b"bytes", "binary"), ("chat", "hi", "only event")):
            await client.emit(name, value)
            kind, error = await next_of(events)
            assert (kind, error["code"]) == ("error", "MALFORMED_FRAME")
            assert problem in error["message"]
        await client.emit("message", envelope())
        await link.next("frame")


@transports
async def test_clients_reconnect_after_a_restart_but_not_once_they_are_superseded(
    transports: list[str],
) -> None:
    async with edge_and_link() as (edge, link):
        async with connected(edge, link, transports, ROUTER) as (client, events, number):
            await link.close(number, 4508, "SUPERSEDED")
            name, notice = await next_of(events)
            assert (name, notice["content"]["code"]) == ("message", "SUPERSEDED")
            assert await next_of(events) == ("disconnect", "server disconnect")
        await link.next("closed")
        async with connected(edge, link, transports, ROUTER) as (client, events, number):
            await link.close(number, 1012, "RESTARTING")
            while (happened := await next_of(events))[0] != "disconnect":
                pass
            assert happened == ("disconnect", "transport error")
            assert client.eio.state == "disconnected"


# Long polling


async def test_the_handshake_waits_for_the_router_and_announces_the_session() -> None:
    async with edge_and_link(heartbeat_s=7) as (edge, link):
        client = Polling(edge)
        async with client.http:
            opening = asyncio.ensure_future(client.open())
            opened = await link.next("opened")
            assert not opening.done()
            assert edge.runtime.core.handshakes
            await link.accept(opened=opened)
            response = await opening
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["access-control-allow-origin"] == "*"
            assert edge.runtime.core.handshakes.is_empty
            assert len(client.opened.pop("sid")) == 32
            assert client.opened == {
                "upgrades": ["websocket"],
                "pingInterval": 7000,
                "pingTimeout": 7000,
                "maxPayload": edge.runtime.settings.large_frame_bytes,
            }


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"x-apikey": "nobody:a"}, 404), ({"platform": "qq"}, 401)]
)
async def test_a_client_that_may_not_connect_gets_a_status(headers: dict[str, str], status: int) -> None:
    async with edge_and_link() as (edge, _):
        client = Polling(edge, headers)
        async with client.http:
            response = await client.open()
            assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
        assert edge.runtime.core.handshakes.is_empty
        assert len(edge.runtime.engine_io) == 0


async def test_a_refusal_by_the_router_is_a_status() -> None:
    async with edge_and_link() as (edge, link):
        client = Polling(edge)
        async with client.http:
            opening = asyncio.ensure_future(client.open())
            opened = await link.next("opened")
            await link.close(opened.connection, 4504, "UNKNOWN_TENANT")
            assert (await opening).status_code == 404
        await edge.until(lambda: not edge.runtime.core.connections and edge.runtime.core.handshakes.is_empty)


async def test_a_client_that_leaves_during_the_handshake_is_forgotten() -> None:
    async with edge_and_link() as (edge, link):
        client = Polling(edge)
        async with client.http:
            opening = asyncio.ensure_future(client.open())
            await link.next("opened")
            opening.cancel()
        await edge.until(lambda: not edge.runtime.core.connections and edge.runtime.core.handshakes.is_empty)
        await link.next("closed")


async def test_nothing_precedes_the_confirmation_of_the_namespace() -> None:
    async with (
        edge_and_link() as (edge, link),
        polling(edge, link, confirmed=False) as (client, number),
    ):
        early = asyncio.ensure_future(client.poll())
        session = edge.transport(number)
        await edge.until(lambda: session._poll is not None)
        before = session.buffered
        await link.publish(1, "early")
        await edge.until(lambda: session.buffered > before)
        assert not session._poll.done()
        await client.send("40")
        confirmation, pushed = await early
        assert confirmation.startswith('40{"sid":')
        assert value_of(pushed)["payload"]["message_segment"]["data"] == "early"
        await client.send("40/other,", "40/")
        assert await client.poll() == ['44/other,{"message":"There is no namespace but /"}']


async def test_a_message_counts_as_delivered_when_the_client_polls_again() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, number):
        await link.publish(1, "one")
        (pushed,) = await client.poll()
        assert value_of(pushed)["payload"]["message_segment"]["data"] == "one"
        assert link.entries.empty()
        assert edge.transport(number).buffered == len(pushed) + 1
        waiting = asyncio.ensure_future(client.poll())
        assert (await link.next("frame")).frame.delivered.position.seq == 1
        await link.publish(2, "two")
        await waiting


async def test_a_client_that_stops_polling_is_closed() -> None:
    async with edge_and_link(heartbeat_s=1) as (edge, link), polling(edge, link) as (client, _):
        await link.next("closed")
        assert edge.runtime.core.counts.refused_by == {}
        assert (await client.get()).status_code == 400


async def test_a_client_that_answers_pings_stays() -> None:
    async with edge_and_link(heartbeat_s=1) as (edge, link), polling(edge, link) as (client, _):
        for _ in range(5):
            assert (await client.get()).text == "2"
            await client.send("3")
        assert len(edge.runtime.core.connections) == 1


async def test_a_client_that_fetches_too_little_is_closed_and_may_fetch_the_rest() -> None:
    async with edge_and_link(outbox_bytes=65536) as (edge, link), polling(edge, link) as (client, _):
        for seq in range(1, 9):
            await link.publish(seq, "x" * 20_000)
        await link.next("closed")
        assert edge.runtime.core.counts.slow_consumers == 1
        rest = await client.poll()
        assert all(packet.startswith('42["message"') for packet in rest)
        assert 1 < len(rest) < 8
        assert (await client.get()).status_code == 400
        await edge.until(lambda: not edge.runtime.core.connections)


async def test_a_second_poll_replaces_the_first() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        first = asyncio.ensure_future(client.poll())
        second = asyncio.ensure_future(client.poll())
        done, (last,) = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [["6"]]
        await link.publish(1, "hello")
        assert value_of((await last)[0])["payload"]["message_segment"]["data"] == "hello"


async def test_nothing_is_lost_by_a_poll_whose_client_left() -> None:
    async with edge_and_link(heartbeat_s=25) as (edge, link), polling(edge, link) as (client, number):
        gone = asyncio.ensure_future(client.poll())
        session = edge.transport(number)
        await edge.until(lambda: session._poll is not None)
        gone.cancel()
        await edge.until(lambda: session._poll is None)
        await link.publish(1, "hello")
        assert value_of((await client.poll())[0])["payload"]["message_segment"]["data"] == "hello"


async def test_a_frame_that_is_too_large_closes_the_session() -> None:
    async with edge_and_link(large_frame_bytes=20_000) as (edge, link), polling(edge, link) as (client, _):
        await client.send(event(envelope("x" * 30_000)))
        await link.next("closed")
        assert (await client.get()).status_code == 400


@pytest.mark.parametrize(
    ("origins", "allowed", "forbidden"),
    [
        (["https://site.example"], "https://site.example", "https://evil.example"),
        ([], "http://localhost:3000", "https://evil.example"),
    ],
)
async def test_a_page_of_the_edges_own_site_polls_without_an_origin(
    origins: list[str], allowed: str, forbidden: str
) -> None:
    """Browsers state the origin in same-origin POSTs and WebSockets, but not in GETs."""
    scripted = ScriptedRouter()
    scripted.policies = [policy("t", origins=origins)]
    async with (
        running_router(router=scripted) as router,
        running_edge(router.address) as edge,
    ):
        link = await router.link()
        async with polling(edge, link) as (client, _):
            assert (await client.post("3", origin=forbidden)).status_code == 403
            with pytest.raises(websockets.InvalidStatus):
                await client.upgrade(origin=forbidden)
            assert (await client.post("3", origin=allowed)).status_code == 200
            async with client.upgrade(origin=allowed) as ws:
                await ws.send("2probe")
                assert await received(ws) == "3probe"


async def test_a_session_is_that_of_its_first_request_only() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        for headers in ({"origin": "https://evil.example"}, {"authorization": "x"}, {"x-apikey": "t:b"}):
            assert (await client.get(**headers)).status_code == 403
            assert (await client.post(event(envelope()), **headers)).status_code == 403
        assert (await client.post("3", **API)).status_code == 200
        client.sid = client.sid[:-1]
        response = await client.get()
        assert (response.status_code, "connect again" in response.text) == (400, True)


@pytest.mark.parametrize(
    ("replaced", "by"), [("EIO=4", "EIO=3"), ("EIO=4", "EIO="), ("polling", "carrier-pigeon")]
)
async def test_other_versions_and_transports_are_refused(replaced: str, by: str) -> None:
    async with edge_and_link() as (edge, _):
        client = Polling(edge)
        client.url = client.url.replace(replaced, by)
        async with client.http:
            assert (await client.open()).status_code == 400


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"\x1e" * MAX_PACKETS, 400),
        (b"42\xff", 400),
        (b"4" * (14 << 20), 413),
        (b"", 200),
        (b"bAAAA", 200),
        (b"9\x1e\x1e6", 200),
    ],
)
async def test_bad_payloads_are_refused_and_odd_packets_dropped(payload: bytes, status: int) -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        assert (await client.post(payload)).status_code == status
        await client.send(event(envelope()))
        assert (await link.next("frame")).frame.message.id == "m1"


async def test_other_methods_and_requests_of_no_session_are_refused() -> None:
    async with edge_and_link() as (edge, _):
        client = Polling(edge)
        async with client.http:
            assert (await client.http.post(client.url, content="4")).status_code == 405
            assert (await client.http.delete(client.url)).status_code == 405
            assert (await client.http.get(f"http://{edge.address}/ws/")).status_code == 426
            preflight = await client.http.options(
                f"{client.url}&api_key=t:a", headers={"origin": "https://a.example"}
            )
            assert preflight.headers["access-control-allow-methods"] == "GET, OPTIONS, POST"


# Upgrade


async def unlike_ping(ws: Any) -> str:
    """Return the next packet that is no ping. The first may come at any time, whatever the interval."""
    while (packet := await received(ws)) == "2":
        pass
    return str(packet)


async def test_a_session_moves_to_a_websocket_with_all_that_was_not_fetched() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, number):
        waiting = asyncio.ensure_future(client.poll())
        async with client.upgrade() as ws:
            await ws.send("2probe")
            assert await received(ws) == "3probe"
            assert await waiting == ["6"]
            assert await client.poll() == ["6"]
            await link.publish(1, "first")
            await edge.until(lambda: edge.transport(number).buffered > 0)
            await ws.send("5")
            assert value_of(await unlike_ping(ws))["payload"]["message_segment"]["data"] == "first"
            await link.publish(2, "second")
            assert value_of(await unlike_ping(ws))["payload"]["message_segment"]["data"] == "second"
            await ws.send(event(envelope()))
            while (entry := await link.next("frame")).frame.WhichOneof("frame") == "delivered":
                pass
            assert entry.frame.message.id == "m1"
            assert (await client.get()).status_code == 400
            assert len(edge.runtime.engine_io) == 0
            assert edge.runtime.core.handshakes.is_empty
        await link.next("closed")


async def test_a_session_survives_a_probe_that_fails() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        for sent in (["2probe"], ["5"], ["4hello"], ["2probe", "5x"], [b"5"]):
            async with client.upgrade() as ws:
                for packet in sent:
                    await ws.send(packet)
                if sent == ["2probe"]:
                    assert await received(ws) == "3probe"
                else:
                    assert await closed(ws) == 4503
        await edge.until(lambda: edge.runtime.core.handshakes.is_empty)
        await link.publish(1, "hello")
        packets = ["6"]
        while packets == ["6"]:
            packets = await client.poll()
        assert value_of(packets[0])["payload"]["message_segment"]["data"] == "hello"


async def test_a_websocket_of_no_session_or_another_version_is_refused() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        client.sid += "x"
        for url_part in ("EIO=4", "EIO=3"):
            client.url = client.url.replace("EIO=4", url_part)
            with pytest.raises(websockets.InvalidStatus) as refused:
                await client.upgrade()
            assert refused.value.response.status_code == 400


async def test_heartbeats_of_a_websocket_are_engine_ios() -> None:
    async with edge_and_link(heartbeat_s=1) as (edge, link):
        coming = asyncio.ensure_future(_websocket(edge))
        await link.accept()
        ws = await coming
        assert (await received(ws)).startswith("0{")
        await ws.send("40{}")
        assert (await received(ws)).startswith('40{"sid"')
        for _ in range(4):
            assert await received(ws) == "2"
            await ws.send("3")
        assert await closed(ws) == 4001


async def _websocket(edge: Edge) -> Any:
    url = f"ws://{edge.address}/ws/?EIO=4&transport=websocket"
    client = await websockets.connect(
        url, compression=None, additional_headers=API, open_timeout=PATIENCE_S, ping_interval=None
    )
    edge.at_end.callback(client.transport.abort)
    return client


async def polled_until_refused(client: Polling) -> int:
    """Poll until the answer is no ping; return its status."""
    while (response := await client.get()).text == "2":
        await client.send("3")
    return response.status_code


async def test_sessions_end_when_the_edge_stops() -> None:
    async with edge_and_link() as (edge, link), polling(edge, link) as (client, _):
        waiting = asyncio.ensure_future(polled_until_refused(client))
        await edge.until(lambda: any(s._poll for s in edge.runtime.engine_io._by_sid.values()))  # type: ignore[attr-defined]
        await edge.runtime.close_all()
        assert await waiting == 400
        assert not edge.runtime.core.connections


async def test_sessions_count_towards_the_limit_of_connections() -> None:
    async with edge_and_link(max_connections=1) as (edge, link), polling(edge, link):
        second = Polling(edge)
        async with second.http:
            assert (await second.open()).status_code == 429
