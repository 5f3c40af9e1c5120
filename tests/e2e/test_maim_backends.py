"""Behaviour that backends of maim_message's tenant server, such as MaiMBot, rely on."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import Message
from trunkline_client import Worker, text_of

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.grpc_backend import GrpcBackend
from tests.e2e.maim_client import MaimClient, broadcast, http, maim_fleet, next_json_line, stock_client
from tests.e2e.polling import wait_until
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.processes import Process

BROADCAST_FIELDS = {"success", "success_count", "failed_count", "total_connections", "message_id"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with maim_fleet(tmp_path_factory.mktemp("maim")) as started:
        yield started


@pytest.fixture
def backend(fleet: Fleet) -> Iterator[GrpcBackend]:
    with GrpcBackend(fleet.router.address) as calling:
        yield calling


class running_worker:  # noqa: N801
    """Runs a worker for some agents while the block runs."""

    def __init__(self, fleet: Fleet, agents: list[str], answer: Callable[[Message], object]) -> None:
        self._worker = Worker(fleet.router.address, tenant="demo", agents=agents)
        self._answer = answer

    async def __aenter__(self) -> None:
        self._running = asyncio.create_task(self._worker.run(self._answer))  # type: ignore[arg-type]

    async def __aexit__(self, *exception: object) -> None:
        await self._worker.drain(5)
        await self._running


async def test_both_broadcast_routes_return_the_original_fields(edge: Process) -> None:
    async with MaimClient(edge, "demo/shapes"), MaimClient(edge, "demo/echo/shapes"):
        for place in ("demo/shapes", "demo/echo/shapes"):
            answer = await broadcast(edge, place, {"type": "notice"})
            assert answer.keys() == BROADCAST_FIELDS
            assert answer["success"] is True
            assert (answer["success_count"], answer["failed_count"], answer["total_connections"]) == (2, 0, 2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", "json_invalid"), (b"no json", "json_invalid"), (b"[]", "dict_type"), (b"7", "dict_type")],
)
async def test_a_body_that_is_not_an_object_is_unprocessable(edge: Process, body: bytes, kind: str) -> None:
    path = "/api/v1/tenants/demo/platforms/shapes/broadcast"
    status, answer = await http(edge, "POST", path, content=body)
    assert status == 422
    assert [problem["type"] for problem in answer["detail"]] == [kind]


async def test_the_published_backend_api_works(edge: Process) -> None:
    async with MaimClient(edge, "demo/qq") as one, MaimClient(edge, "demo/qq"):
        with stock_client("backend", f"http://{edge.address}") as client:
            verified, nobody, status, flushed = [await next_json_line(client) for _ in range(4)]
        assert (await one.next("notice"))["text"] == "hello"
        sent, result = verified["broadcast_result"], verified["message_result"]
        assert sent.keys() == BROADCAST_FIELDS
        assert sent["success_count"] == 2
        assert result["success"] is True
        assert result["message_id"] == sent["message_id"]
        assert result.keys() == {
            "success",
            "message_id",
            "error_code",
            "error_message",
            "retry_count",
            "timestamp",
        }
        assert nobody == {"success": False, "error": "No active connections"}
        assert (status["status"], status["active_connections"]) == ("active", 2)
        uuid = one.confirmed["connection_uuid"]
        (listed,) = [each for each in status["connections"] if each["uuid"] == uuid]
        assert listed.keys() - {"agent_id"} == {
            "uuid",
            "tenant_id",
            "platform",
            "created_at",
            "last_active",
            "connection_pool",
            "metadata",
            "is_connected",
        }
        assert flushed == {"message": "Retry pool flushed"}


@pytest.mark.parametrize("message_id", ["none", "none@demo", "none@nobody", "@demo", "none@", "%20@demo"])
async def test_the_result_of_an_unknown_message_is_not_found(edge: Process, message_id: str) -> None:
    answer = await http(edge, "GET", f"/api/v1/message/{message_id}/result")
    assert answer == (404, {"detail": "Message result not found"})


async def test_an_unknown_tenant_has_no_connections(edge: Process) -> None:
    assert await http(edge, "GET", "/api/v1/tenants/nobody/connections") == (200, {"connections": []})


async def test_a_broadcast_from_another_process_reaches_exactly_its_agent_and_platform(
    edge: Process,
) -> None:
    places = ["demo/one/pushes", "demo/two/pushes", "demo/one/pushes2", "acme/one/pushes"]
    adapters = [MaimClient(edge, place) for place in places]
    async with adapters[0], adapters[1], adapters[2], adapters[3]:
        jobs = json.dumps([["demo", "one", "pushes", 3]])
        with stock_client("bot", f"http://{edge.address}", jobs) as bot:
            assert await next_json_line(bot) == {"sent": 3, "reached": 3}
        received = [
            [push["data"]["response"] for push in await adapter.frames_so_far()] for adapter in adapters
        ]
    assert received == [[f"demo/one/pushes {number}" for number in range(3)], [], [], []]


async def test_no_active_connection_is_a_normal_response_with_the_original_text(
    edge: Process, backend: GrpcBackend
) -> None:
    answer = await broadcast(edge, "demo/agent_xxx/test", {"type": "message"})
    text = "No active connections for agent agent_xxx on platform test"
    assert answer == {"success": False, "error": text}
    assert backend.messages("demo/agent_xxx/test") == []


async def test_a_failure_is_an_error_response(tmp_path: Path) -> None:
    with fleet_of(tmp_path) as own:
        own.router.kill()
        path = "/api/v1/tenants/demo/agents/a/platforms/p/broadcast"
        status, answer = await http(own.processes[1], "POST", path, {"type": "message"})
    assert status == 503
    assert answer == {"detail": "The service is starting or restarting; try again"}


async def test_three_users_of_two_agents_are_each_answered_on_their_own_connection(
    fleet: Fleet, edge: Process
) -> None:
    agents, users, messages = ["ag1", "ag2"], ["u1", "u2", "u3"], 20
    places = [f"demo/{agent}/{user}" for agent in agents for user in users]

    def answer(message: Message) -> str:
        return f"{message.address.agent}/{message.address.platform} {text_of(message)}"

    async def converse(place: str) -> tuple[list[str], list[str]]:
        """Return the worker's replies, and the pushes of the bot's process."""
        _, agent, user = place.split("/")
        async with MaimClient(edge, place) as adapter:
            ready.release()
            for number in range(messages):
                assert (await adapter.say(f"{place}-{number}", f"question {number}"))["success"]
            replies = [await adapter.next("chat_response") for _ in range(messages)]
            pushes = [await adapter.next("message") for _ in range(messages)]
            await asyncio.wait_for(done.wait(), patient(20))
            assert await adapter.frames_so_far() == []
        assert {(frame["agent_id"], frame["platform"]) for frame in replies + pushes} == {(agent, user)}
        return tuple([frame["data"]["response"] for frame in frames] for frames in (replies, pushes))  # type: ignore[return-value]

    ready, done = asyncio.Semaphore(0), asyncio.Event()
    async with running_worker(fleet, agents, answer):
        conversations = [asyncio.create_task(converse(place)) for place in places]
        for _ in places:
            await asyncio.wait_for(ready.acquire(), patient(20))
        jobs = json.dumps([[*place.split("/"), messages] for place in places])
        with stock_client("bot", f"http://{edge.address}", jobs) as bot:
            assert await next_json_line(bot) == {"sent": 120, "reached": 120}
        done.set()
        received = await asyncio.gather(*conversations)
    for place, (replies, pushes) in zip(places, received, strict=True):
        assert replies == [f"{place.removeprefix('demo/')} question {number}" for number in range(messages)]
        assert pushes == [f"{place} {number}" for number in range(messages)]


async def test_broadcasts_by_grpc_and_by_http_are_delivered_in_order(
    edge: Process, backend: GrpcBackend
) -> None:
    async with MaimClient(edge, "demo/echo/mixed") as adapter:
        for number in range(5):
            backend.broadcast("demo/echo/mixed", f"by gRPC {number}")
            await broadcast(edge, "demo/mixed", {"type": "notice", "number": number})
        frames = [await adapter.next("chat_response", "notice") for _ in range(10)]
    assert [frame["type"] for frame in frames] == ["chat_response", "notice"] * 5
    assert frames[8]["message_segment"] == {"type": "text", "data": "by gRPC 4"}
    assert frames[8]["data"]["response"] == "by gRPC 4"
    ids = [each.id for each in backend.messages("demo/echo/mixed")]
    assert [frame["message_id"] for frame in frames] == [f"{each}@demo" for each in ids]


async def test_a_message_is_acknowledged_before_it_is_answered(fleet: Fleet, edge: Process) -> None:
    may_answer = asyncio.Event()

    async def answer(message: Message) -> str:
        await may_answer.wait()
        return "at last"

    async with running_worker(fleet, ["slow"], answer), MaimClient(edge, "demo/slow/acked") as adapter:
        result = await adapter.say("acked-1", "hello")
        assert result["success"]
        assert await adapter.frames_so_far() == []
        may_answer.set()
        reply = await adapter.next("chat_response")
        assert (reply["data"]["response"], reply["reply_to"]) == ("at last", result["server_message_id"])


async def test_a_body_passes_through_unchanged_except_for_stamped_fields(edge: Process) -> None:
    values = {
        "type": '"notice"',
        "float": "1.0",
        "big": "123456789012345678901234567890",
        "tiny": "1e-400",
        "escaped": '"\\u00e9 é \\/ \\ud83d\\ude00"',
        "spaced": '{ "b" : [ 1 ,\n 2 ], "a":null }',
    }
    stamped = {"tenant_id": '"forged"', "agent_id": '"forged"', "message_id": "7", "platform": "[]"}
    body = "{" + ", ".join(f'"{name}": {value}' for name, value in (values | stamped).items()) + "}"
    async with MaimClient(edge, "demo/echo/stamped") as adapter:
        path = "/api/v1/tenants/demo/agents/echo/platforms/stamped/broadcast"
        _, answer = await http(edge, "POST", path, content=body.encode())
        while '"notice"' not in (pushed := await adapter.text()):
            pass
    for name, value in values.items():
        assert f'"{name}":{value}' in pushed
    frame = json.loads(pushed)
    assert frame["message_id"] == answer["message_id"]
    assert (frame["tenant_id"], frame["agent_id"], frame["platform"]) == ("demo", "echo", "stamped")
    assert frame.keys() == values.keys() | stamped.keys() | {"broadcast_timestamp"}


async def test_tenant_and_agent_are_never_guessed(edge: Process) -> None:
    status, answer = await http(
        edge, "POST", "/api/v1/tenants/bare/platforms/guessed/broadcast", {"type": "notice"}
    )
    assert status == 400
    assert "set [tenants.bare] agent" in answer["detail"]
    path = "/api/v1/tenants/default/agents/a/platforms/guessed/broadcast"
    assert await http(edge, "POST", path, {"type": "notice"}) == (
        404,
        {"detail": "Tenant default does not exist"},
    )


async def test_all_connections_of_a_platform_receive_a_broadcast_and_dead_ones_do_not_count(
    edge: Process, backend: GrpcBackend
) -> None:
    async with (
        MaimClient(edge, "demo/shared") as one,
        MaimClient(edge, "demo/shared") as two,
        MaimClient(edge, "demo/shared") as dead,
    ):
        answer = await broadcast(edge, "demo/shared", {"type": "notice", "number": 1})
        assert (answer["success_count"], answer["total_connections"]) == (3, 3)
        for adapter in (one, two, dead):
            assert (await adapter.next("notice"))["number"] == 1
        # TCP RST, like a process that is killed while data is in transit to it.
        linger = struct.pack("ii", 1, 0)
        dead.ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        dead.ws.transport.abort()
        await wait_until(lambda: backend.count("demo/echo/shared") == (2, 1), "the dead one is gone")
        answer = await broadcast(edge, "demo/shared", {"type": "notice", "number": 2})
        assert (answer["success_count"], answer["failed_count"], answer["total_connections"]) == (2, 0, 2)
        for adapter in (one, two):
            assert (await adapter.next("notice"))["number"] == 2


async def test_the_result_of_a_client_message_is_success(edge: Process) -> None:
    async with MaimClient(edge, "demo/results") as adapter:
        taken = await adapter.say("results-1", "hello")
        status, result = await http(edge, "GET", f"/api/v1/message/{taken['server_message_id']}/result")
        assert (status, result["success"], result["error_code"]) == (200, True, None)
