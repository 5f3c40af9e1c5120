"""Bot replies as LangBot's clients receive them, while streaming and in the message list."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from trunkline.v1.message_pb2 import Part, ToolCallPart
from trunkline_client import Backend, Failed, Reject, RetryLater, address, broadcast_request, text_of

from tests.e2e.langbot_client import (
    ChatClient,
    EdgeFleet,
    RestClient,
    edges_of,
    pipeline_worker,
    streaming_handler,
)
from tests.support.patience import patient
from tests.support.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline_client import Handler, Message, Worker

PIPELINES = [f"p{number}" for number in range(1, 30)]


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    tenants = f"[tenants.acme]\nopen_to = 'loopback'\npipelines = {PIPELINES}\n"
    with edges_of(tmp_path_factory.mktemp("langbot"), tenants) as started:
        yield started


@pytest.fixture
def edge(edges: EdgeFleet) -> Process:
    return edges.plain


async def test_a_streamed_reply_grows_under_one_id_and_ends_once(edges: EdgeFleet, edge: Process) -> None:
    gate = asyncio.Event()
    async with pipeline_worker(edges.router, ["p4"], streaming_handler(gate)), ChatClient(edge, "p4") as ann:
        await ann.say("one two three four five")
        asked = await ann.next("user_message")
        await ann.wait_for_record("one two three ")
        async with ChatClient(edge, "p4") as late:
            so_far = (await late.frame())["data"]
            assert (so_far["content"], so_far["is_final"]) == ("one two three ", False)
            gate.set()
            await late.reply()
            await ann.reply()
            for each in (ann, late):
                await each.say("fence")
                await each.wait_for_record("fence")
                records = [frame["data"] for frame in each.of_type("response")]
                assert {record["id"] for record in records} == {so_far["id"]}
                assert {record["timestamp"] for record in records} == {so_far["timestamp"]}
                contents = [record["content"] for record in records]
                for before, after in pairwise(contents):
                    assert after.startswith(before)
                assert contents[-1] == "one two three four five "
                assert [record["is_final"] for record in records] == [False] * (len(records) - 1) + [True]
                assert {record["role"] for record in records} == {"assistant"}
                assert {record["connection_id"] for record in records} == {""}
        assert so_far["id"] > asked["data"]["id"]


async def test_stream_false_yields_one_frame_and_does_not_affect_others(
    edges: EdgeFleet, edge: Process
) -> None:
    gate = asyncio.Event()
    async with (
        pipeline_worker(edges.router, ["p5"], streaming_handler(gate)),
        ChatClient(edge, "p5") as whole,
        ChatClient(edge, "p5") as grows,
    ):
        await whole.say("one two three four", stream=False)
        await grows.wait_for_record("one two three ")
        gate.set()
        (only,) = await whole.reply()
        assert only["content"] == "one two three four "
        assert (await grows.reply())[-1] == only
        assert len(grows.of_type("response")) > 1
        gate.clear()
        await whole.say("a b c d")
        record = await whole.wait_for_record("a b c ")
        assert not record["is_final"]
        gate.set()
        assert (await whole.reply())[-1]["content"] == "a b c d "


async def test_concurrent_replies_do_not_overwrite_each_other(edges: EdgeFleet, edge: Process) -> None:
    def make(worker: Worker) -> Handler:
        async def answer(message: Message) -> None:
            async with worker.reply(message) as one, worker.open_message(message.address) as two:
                for number in range(5):
                    await one.write(f"a{number}")
                    await two.write(f"b{number}")
                    await seen.acquire()

        return answer

    seen = asyncio.Semaphore(0)
    async with (
        pipeline_worker(edges.router, ["p6"], make),
        ChatClient(edge, "p6") as ann,
        ChatClient(edge, "p6") as bob,
    ):
        await asyncio.gather(ann.say("x"), bob.say("y"))
        last: dict[int, str] = {}
        finals: list[str] = []
        while len(finals) < 4:
            record = (await ann.next("response"))["data"]
            assert record["content"].startswith(last.get(record["id"], ""))
            last[record["id"]] = record["content"]
            finals += [record["content"]] if record["is_final"] else []
            seen.release()
        assert sorted(finals) == ["a0a1a2a3a4"] * 2 + ["b0b1b2b3b4"] * 2
        assert sorted(last.values()) == sorted(finals)


async def test_the_list_contains_the_conversation_in_the_order_of_ids(
    edges: EdgeFleet, edge: Process
) -> None:
    async with (
        pipeline_worker(edges.router, ["p7", "p8"], streaming_handler()),
        ChatClient(edge, "p7") as ann,
    ):
        received = []
        for number in range(3):
            await ann.say(f"question number {number} please")
            received += [(await ann.next("user_message"))["data"], (await ann.reply())[-1]]
        async with ChatClient(edge, "p7", "group") as group, ChatClient(edge, "p8") as other:
            for each in (group, other):
                await each.say("elsewhere")
                await each.reply()
        listed = await RestClient(edge, "p7").messages()
        assert listed == received
        ids = [record["id"] for record in listed]
        assert ids == sorted(set(ids))
        for rest, session_type in ((RestClient(edge, "p7"), "group"), (RestClient(edge, "p8"), "person")):
            contents = [record["content"] for record in await rest.messages(session_type)]
            assert contents == ["elsewhere", "elsewhere "]
        assert await RestClient(edge, "p9").messages() == []


async def test_an_open_reply_is_listed_with_its_text_so_far(edges: EdgeFleet, edge: Process) -> None:
    gate = asyncio.Event()
    async with pipeline_worker(edges.router, ["p9"], streaming_handler(gate)), ChatClient(edge, "p9") as ann:
        await ann.say("one two three four")
        record = await ann.wait_for_record("one two three ")
        listed = (await RestClient(edge, "p9").messages())[-1]
        assert (listed["id"], listed["is_final"]) == (record["id"], False)
        gate.set()
        await ann.reply()


async def test_the_list_contains_the_newest_500(edges: EdgeFleet, edge: Process) -> None:
    place = address(tenant="acme", agent="p10", platform="langbot", conversation="person:langbot")
    async with Backend(edges.router.address) as backend, backend.publisher() as publisher:
        for number in range(620):
            publisher.publish(broadcast_request(place, f"number {number}"))
    listed = await RestClient(edge, "p10").messages()
    assert [record["content"] for record in listed] == [f"number {number}" for number in range(120, 620)]


async def test_a_reset_empties_one_session_and_restarts_its_ids(edge: Process) -> None:
    rest = RestClient(edge, "p11")
    async with ChatClient(edge, "p11") as person, ChatClient(edge, "p11", "group") as group:
        for each in (person, group):
            await each.say("before")
            await each.wait_for_record("before")
        assert await rest.reset() == {"message": "Session reset successfully"}
        assert await rest.messages() == []
        await person.say("after")
        assert (await person.wait_for_record("after"))["id"] == 1
        assert [record["content"] for record in await rest.messages()] == ["after"]
        assert [record["content"] for record in await rest.messages("group")] == ["before"]
        assert person.of_type("error") == []
    assert await rest.reset() == await rest.reset() == {"message": "Session reset successfully"}
    assert await RestClient(edge, "p21").reset() == {"message": "Session reset successfully"}


async def test_a_reset_during_a_reply_drops_it_and_the_next_reply_arrives(
    edges: EdgeFleet, edge: Process
) -> None:
    gate = asyncio.Event()
    async with (
        pipeline_worker(edges.router, ["p12"], streaming_handler(gate)),
        ChatClient(edge, "p12") as ann,
    ):
        await ann.say("one two three four")
        await ann.wait_for_record("one two three ")
        await RestClient(edge, "p12").reset()
        await ann.say("again")
        gate.set()
        assert (await ann.wait_for_record("again"))["id"] == 1
        assert (await ann.reply())[-1]["content"] == "again "
        assert [record["id"] for record in await RestClient(edge, "p12").messages()] == [1, 2]


async def test_every_reply_has_one_final_record_however_it_ends(edges: EdgeFleet, edge: Process) -> None:
    opened = asyncio.Event()

    def make(worker: Worker) -> Handler:
        attempts: set[str] = set()

        async def answer(message: Message) -> None:
            _, ending, words = text_of(message).split("|")
            if ending == "expire" and message.id in attempts:
                raise Reject("no more")
            attempts.add(message.id)
            async with worker.reply(message) as out:
                await out.write_reasoning("thinking")
                await out.add(Part(tool_call=ToolCallPart(call_id="c", name="look", arguments="{}")))
                if words:
                    await out.write(words)
                if ending == "fail":
                    raise Failed("the model is gone")
                if ending == "expire":
                    raise RetryLater(0.01)
                if ending == "wait":
                    opened.set()
                    await asyncio.Event().wait()

        return answer

    place = address(tenant="acme", agent="p22", platform="langbot", conversation="person:langbot")
    async with (
        Backend(edges.router.address) as backend,
        pipeline_worker(edges.router, ["p22"], make),
        ChatClient(edge, "p22") as chat,
    ):
        for ending, words, expected in (
            ("end", "all", "all"),
            ("end", "", ""),
            ("fail", "half", "half"),
            ("fail", "", "the model is gone"),
            ("wait", "half", "half"),
            ("wait", "", "The reply was cancelled"),
            ("expire", "half", "half"),
            ("expire", "", "The agent failed to answer; ask again later"),
        ):
            opened.clear()
            await chat.say(f"say|{ending}|{words}")
            if ending == "wait":
                await asyncio.wait_for(opened.wait(), patient(10))
                logged = (await backend.list_messages(place)).messages[-1]
                await backend.cancel("acme", logged.id)
            records = await chat.reply()
            assert (records[-1]["content"], records[-1]["is_final"]) == (expected, True), (ending, words)
            assert len({record["id"] for record in records}) == 1
            assert all(component["type"] == "Plain" for component in records[-1]["message_chain"])
            assert (await RestClient(edge, "p22").messages())[-1] == records[-1]
        await chat.say("say|end|fence")
        await chat.reply()
        finals = [frame["data"]["id"] for frame in chat.of_type("response") if frame["data"]["is_final"]]
        assert len(finals) == len(set(finals)) == 9


async def test_clients_stay_connected_and_a_reply_continues_over_a_router_restart(
    edges: EdgeFleet, edge: Process
) -> None:
    gate = asyncio.Event()

    def make(worker: Worker) -> Handler:
        async def answer(message: Message) -> None:
            async with worker.reply(message) as out:
                if not out.resumed:
                    await out.write("before ")
                await gate.wait()
                await out.write("after")

        return answer

    async with pipeline_worker(edges.router, ["p23"], make), ChatClient(edge, "p23") as chat:
        await chat.say("hello")
        first = await chat.wait_for_record("before ")
        await edges.fleet.restart_router()
        gate.set()
        last = (await chat.reply())[-1]
        assert (last["id"], last["content"]) == (first["id"], "before after")
        await chat.say("and on")
        await chat.wait_for_record("and on")
        ids = [record["id"] for record in await RestClient(edge, "p23").messages()]
        assert ids == sorted(set(ids))
        assert len(chat.of_type("user_message")) == 2
