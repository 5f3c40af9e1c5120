"""The command line, on a terminal and in a pipe."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import DeadLetter, ListDeadLettersResponse, ReplayDeadLettersResponse
from trunkline.v1.broadcast_service_pb2 import BroadcastResponse
from trunkline.v1.error_pb2 import Error
from trunkline.v1.frame_pb2 import REPLY_STATUS_RETRYING, ClosingFrame, DeltaFrame, ReplyStatusFrame
from trunkline.v1.history_service_pb2 import ListMessagesResponse, ListReceiptsResponse, Receipt
from trunkline.v1.message_pb2 import (
    CHANGE_KIND_ENDED,
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_FAILED,
    MESSAGE_STATE_OPEN,
    Change,
)
from trunkline.v1.presence_service_pb2 import Connection, ListConnectionsResponse

from tests.clients.scripted_edge import ALICE, EdgeSide, ScriptedEdge, at, message, scripted_edge
from tests.clients.scripted_router import scripted_router


async def run(*arguments: str, stdin: str = "") -> tuple[int, list[str], list[str]]:
    """Runs a command; returns its exit code and the lines it wrote to stdout and stderr."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trunkline_client", *arguments, stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


async def output_of(*arguments: str) -> list[str]:
    """Runs a command that must succeed; returns the lines it wrote to stdout."""
    code, out, err = await run(*arguments)
    assert code == 0, err
    return out


async def echo(edge: ScriptedEdge, lines: int) -> EdgeSide:
    """Accepts a client and answers its lines."""
    side = await edge.accept()
    await side.welcome()
    for number in range(1, lines + 1):
        question = (await side.read()).message
        seq = 2 * number
        await side.ack(question.id, seq - 1)
        reply = message(seq, f"You said: {question.parts[0].text.text}", reply_to=f"m{seq - 1}")
        await side.send(message=reply)
    assert (await side.read()).HasField("disconnect")
    await side.send(closing=ClosingFrame(code=1000, reason="DISCONNECTED"))
    await side.close(1000)
    return side


async def test_a_line_from_a_pipe_is_sent_and_its_reply_is_written_plainly() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(echo(edge, 2))
        chat = await run("chat", "--url", edge.url, "--user", "alice", stdin="hello\n\nbye")
        assert chat == (0, ["You said: hello", "You said: bye"], [])
        side = await answering
        assert side.query["conversation"] == "person:alice"


async def test_once_sends_one_message() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:
        tasks.create_task(echo(edge, 1))
        assert await run("chat", "--edge", edge.url, "--once", "hi") == (0, ["You said: hi"], [])


async def test_a_rejected_connection_prints_one_line_and_exits_with_1() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:

        async def refuse() -> None:
            side = await edge.accept()
            closing = ClosingFrame(code=4504, reason="UNKNOWN_TENANT", message="Tenant demo does not exist")
            await side.send(closing=closing)
            await side.close(4504)

        tasks.create_task(refuse())
        code, out, err = await run("chat", "--url", edge.url, "--once", "hi")
        assert (code, out, err) == (1, [], ["Tenant demo does not exist (4504 UNKNOWN_TENANT)"])


async def test_a_connection_that_closes_for_good_prints_one_line_and_exits_with_1() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:

        async def end() -> None:
            side = await edge.accept()
            await side.welcome()
            await side.read()
            await side.close(4501)

        tasks.create_task(end())
        code, out, err = await run("chat", "--url", edge.url, "--once", "hi")
        assert (code, out, len(err)) == (1, [], 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "--url", "ws://127.0.0.1:1", "--once", "hi"),
        ("chat", "--conversation", "alice", "--once", "hi"),
        ("broadcast", "hello", "--router", "127.0.0.1:1"),
    ],
)
async def test_an_expected_failure_prints_one_line_and_exits_with_1(arguments: tuple[str, ...]) -> None:
    code, out, err = await run(*arguments)
    assert (code, out, len(err)) == (1, [], 1)


async def test_a_missing_reply_is_reported() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:

        async def only_ack() -> None:
            side = await edge.accept()
            await side.welcome()
            await side.ack((await side.read()).message.id, 1)
            await side.read()
            await side.close(1000)

        tasks.create_task(only_ack())
        code, _, err = await run("chat", "--url", edge.url, "--once", "hi", "--wait-s", "0.05")
        assert (code, err) == (1, ["No reply within 0.05 s"])


async def stream(edge: ScriptedEdge, change: Change) -> EdgeSide:
    """Accepts a client and streams a reply to its line, which ends with this change."""
    side = await edge.accept()
    await side.welcome()
    await side.ack((await side.read()).message.id, 1)
    reply = message(2, "Once ", reply_to="m1", state=MESSAGE_STATE_OPEN)
    await side.send(message=reply)
    await side.send(delta=DeltaFrame(reasoning="what next?"))
    await side.send(message=message(3, "An aside"))
    await side.send(delta=DeltaFrame(message_id="m2", text="upon a time"))
    change.MergeFrom(Change(position=at(4), address=ALICE, message_id="m2", kind=CHANGE_KIND_ENDED))
    await side.send(change=change)
    await side.read()
    await side.close(1000)
    return side


async def test_a_streamed_reply_is_printed_as_it_grows_and_awaited() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(edge, Change(state=MESSAGE_STATE_COMPLETE)))
        result = await run("chat", "--url", edge.url, "--once", "a story")
        assert result == (0, ["Once upon a time", "An aside"], [])


async def test_a_failed_reply_prints_one_line_and_exits_with_1() -> None:
    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:
        failed = Change(state=MESSAGE_STATE_FAILED, error=Error(message="The model is gone"))
        tasks.create_task(stream(edge, failed))
        code, _, err = await run("chat", "--url", edge.url, "--once", "a story")
        assert (code, err) == (1, ["The model is gone"])


async def test_a_reply_that_failed_at_once_prints_one_line_and_exits_with_1() -> None:
    async def fail(edge: ScriptedEdge) -> None:
        side = await edge.accept()
        await side.welcome()
        await side.ack((await side.read()).message.id, 1)
        status = ReplyStatusFrame(message_id="m1", status=REPLY_STATUS_RETRYING, attempts=1)
        await side.send(reply_status=status)
        error = Error(code="AGENT_FAILED", message="No credit left")
        failed = message(2, reply_to="m1", state=MESSAGE_STATE_FAILED, error=error)
        del failed.parts[:]
        await side.send(message=failed)
        await side.read()
        await side.close(1000)

    async with scripted_edge() as edge, asyncio.TaskGroup() as tasks:
        tasks.create_task(fail(edge))
        assert await run("chat", "--edge", edge.url, "--once", "hi") == (1, [], ["No credit left"])


async def test_ctrl_c_cancels_the_reply_and_a_second_one_ends_the_chat() -> None:
    pipe = asyncio.subprocess.PIPE
    async with scripted_edge() as edge:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "trunkline_client", "chat", "--url", edge.url, stdin=pipe, stdout=pipe
        )
        assert process.stdin is not None
        assert process.stdout is not None
        side = await edge.accept()
        await side.welcome()
        process.stdin.write(b"a story\n")
        await side.ack((await side.read()).message.id, 1)
        await side.send(message=message(2, "Once", reply_to="m1", state=MESSAGE_STATE_OPEN))
        assert await process.stdout.readexactly(4) == b"Once"
        process.send_signal(signal.SIGINT)
        assert (await side.read()).cancel.message_id == "m2"
        process.send_signal(signal.SIGINT)
        assert (await side.read()).HasField("disconnect")
        await side.close(1000)
        assert await process.wait() == 0
        process.stdin.close()
        await process.stdin.wait_closed()
        edge.end()


async def test_dead_letters_are_listed_and_replayed() -> None:
    async with scripted_router() as router:
        pages = {
            0: ListDeadLettersResponse(
                dead_letters=[
                    DeadLetter(delivery_id=4, attempts=5, reason="no [model]", message=message(3, "hi"))
                ],
                more=True,
            ),
            4: ListDeadLettersResponse(dead_letters=[DeadLetter(delivery_id=9)]),
        }
        router.answers = {
            "ListDeadLetters": lambda request: pages[request.after],
            "ReplayDeadLetters": lambda request: ReplayDeadLettersResponse(
                replayed=len(request.delivery_ids)
            ),
        }
        of = ("deadletters", "--agent", "echo", "--router", router.address)
        printed = await output_of(*of)
        assert any("4" in line and "hi" in line for line in printed)
        assert any("[model]" in line for line in printed)
        assert await run(*of, "--replay-all") == (0, ["2 delivered again"], [])
        assert list(router.requests[-1].delivery_ids) == [4, 9]
        assert await run(*of, "--replay", "7") == (0, ["1 delivered again"], [])
        assert list(router.requests[-1].delivery_ids) == [7]


async def test_receipts_are_listed_to_the_last_page() -> None:
    async with scripted_router() as router:
        pages = {
            "": ListReceiptsResponse(receipts=[Receipt(user="alice", read=at(3))], more=True),
            "alice": ListReceiptsResponse(receipts=[Receipt(user="bob", delivered=at(5))]),
        }
        router.answers = {"ListReceipts": lambda request: pages[request.after]}
        asked = ("--agent", "echo", "--conversation", "group:team", "--router", router.address)
        printed = await output_of("receipts", *asked)
        assert any("alice" in line and "3" in line for line in printed)
        assert any("bob" in line and "5" in line for line in printed)


async def test_backend_commands_print_the_answers() -> None:
    async with scripted_router() as router:
        router.answers = {
            "Broadcast": lambda _: BroadcastResponse(message_id="m1", position=at(4), connections=2),
            "ListMessages": lambda _: ListMessagesResponse(messages=[message(3, "hello")]),
            "ListConnections": lambda _: ListConnectionsResponse(
                connections=[Connection(connection_id="c1", user="alice")]
            ),
        }
        at_router = ("--router", router.address)
        assert await run("broadcast", "hello", *at_router) == (0, ["m1  position 4, 2 connected"], [])
        printed = await output_of("history", "--agent", "echo", *at_router)
        assert any("hello" in line and "agent" in line for line in printed)
        assert router.requests[-1].address.agent == "echo"
        printed = await output_of("connections", *at_router)
        assert any("c1" in line and "alice" in line for line in printed)
        router.answers["Broadcast"] = lambda _: catalogue.UNKNOWN_TENANT
        code, _, err = await run("broadcast", "hello", *at_router)
        assert (code, len(err)) == (1, 1)
