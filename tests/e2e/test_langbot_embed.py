"""Visitors of pages that embed a bot: each has a conversation of their own, without a token."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.langbot_client import ChatClient, EdgeFleet, edges_of, pipeline_worker, streaming_handler
from tests.e2e.operator_client import OperatorClient, wait_until_known
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.processes import Process

BOT = "1f0a7c52-93a6-4f0f-8f8e-2d5f6c1b7a90"
SESSION = "3c2081f7-64d3-4b13-9daf-e2df9d593861"
SITE = "https://shop.example"
TENANTS = f"""
[tenants.acme]
web_page_bots = ["{BOT}"]
tokens = ["secret"]
[tenants.shop]
web_page_bots = ["shopbot"]
origins = ["{SITE}"]
[tenants.home]
open_to = "loopback"
pipelines = ["homebot"]
[tenants.public]
open_to = "anybody"
pipelines = ["publicbot"]
[tenants.closed]
pipelines = ["closedbot"]
tokens = ["another"]
"""


class Visitor(ChatClient):
    """A visitor's chat, as LangBot's widget does it."""

    def __init__(
        self, edge: Process, bot: str = BOT, session: str = "", session_type: str = "person", **options: Any
    ) -> None:
        super().__init__(edge, bot, **{"first": {"type": "authenticate", "token": ""}} | options)
        self.session = session or str(uuid.uuid4())
        asked = f"session_type={session_type}&session_id={self.session}"
        self._url = f"ws://{edge.address}/api/v1/embed/{bot}/ws/connect?{asked}"
        self._base = f"http://{edge.address}/api/v1/embed/{bot}"
        self._type = session_type

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with httpx.AsyncClient(timeout=patient(15)) as http:
            answer = await http.request(method, f"{self._base}/{path}", **options)
            return answer.status_code, answer.json()

    async def messages(self) -> list[str]:
        path = f"messages/{self._type}?session_id={self.session}"
        status, body = await self.call("GET", path)
        assert (status, body["code"], body["msg"]) == (200, 0, "ok"), body
        return [record["content"] for record in body["data"]["messages"]]

    async def reset(self) -> tuple[int, Any]:
        return await self.call("POST", f"reset/{self._type}?session_id={self.session}")


async def get(url: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=patient(15)) as http:
        return await http.get(url, **options)


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    with edges_of(tmp_path_factory.mktemp("embed"), TENANTS) as started:
        yield started


@pytest.fixture
def edge(edges: EdgeFleet) -> Process:
    return edges.plain


@pytest.fixture
async def worker(edges: EdgeFleet) -> AsyncIterator[None]:
    key = edges.fleet.operator_key
    async with pipeline_worker(edges.router, [BOT], streaming_handler(), tenant="acme", api_key=key):
        yield


@pytest.mark.usefixtures("worker")
async def test_visitors_never_see_each_others_chats(edges: EdgeFleet) -> None:
    second_edge = edges.start()
    async with Visitor(edges.plain) as ann, Visitor(second_edge) as bob:
        assert ann.connected["bot_uuid"] == BOT
        assert "pipeline_uuid" not in ann.connected
        async with Visitor(second_edge, session=ann.session) as tab:
            await ann.say("from ann alone")
            await bob.say("from bob alone")
            for chat, text in ((ann, "from ann alone"), (tab, "from ann alone"), (bob, "from bob alone")):
                records = await chat.reply()
                assert len({record["id"] for record in records}) == 1
                assert records[-1]["content"].split() == text.split()
        assert await ann.messages() == ["from ann alone", "from ann alone "]
        assert await bob.messages() == ["from bob alone", "from bob alone "]
        async with Visitor(edges.plain, session=ann.session, session_type="group") as group:
            assert await group.messages() == []
        # A reset is of one session's one conversation.
        assert await ann.reset() == (
            200,
            {"code": 0, "msg": "ok", "data": {"message": "Session reset successfully"}},
        )
        assert await ann.messages() == []
        assert len(await bob.messages()) == 2
        for chat in (ann, bob):
            other = "bob" if chat is ann else "ann"
            assert f"from {other}" not in json.dumps(chat.frames)


@pytest.mark.parametrize("bot", ["homebot", "publicbot"])
async def test_pipelines_of_open_tenants_may_be_embedded(edge: Process, bot: str) -> None:
    async with Visitor(edge, bot) as visitor:
        await visitor.say("hello")
        await visitor.wait_for_record("hello")
        assert await visitor.messages() == ["hello"]
        assert (await visitor.reset())[0] == 200
        assert await visitor.messages() == []


@pytest.mark.parametrize("bot", ["closedbot", "nobodys", SESSION])
async def test_other_bots_are_not_available(edge: Process, bot: str) -> None:
    visitor = Visitor(edge, bot, first=None)
    frames, code = await (await visitor.dial()).closed()
    assert (frames, code) == ([{"type": "error", "message": "Bot not found or not available"}], 1000)
    missing = (404, {"code": -1, "msg": "Bot not found or not available"})
    assert await visitor.call("GET", f"messages/person?session_id={visitor.session}") == missing
    assert await visitor.reset() == missing
    assert await visitor.call("POST", "feedback", json={"message_id": "1", "feedback_type": 1}) == missing
    script = await get(f"http://{edge.address}/api/v1/embed/{bot}/widget.js")
    assert (script.status_code, script.headers["content-type"].partition(";")[0]) == (
        404,
        "application/javascript",
    )


@pytest.mark.parametrize(
    "session",
    ["x", "1", "00000000-0000-1000-8000-000000000000", SESSION.upper(), SESSION.replace("-", ""), "../x"],
)
async def test_only_a_random_uuid_is_a_session(edge: Process, session: str) -> None:
    visitor = Visitor(edge, session=session, first=None)
    frames, _ = await (await visitor.dial()).closed()
    assert frames == [{"type": "error", "message": "Valid session_id is required"}]
    wrong = (400, {"code": -1, "msg": "Valid session_id is required"})
    assert await visitor.call("GET", "messages/person", params={"session_id": session}) == wrong
    assert await visitor.call("POST", "reset/person", params={"session_id": session}) == wrong
    assert await visitor.call("GET", "messages/person") == wrong


async def test_only_pages_of_declared_origins_may_embed_a_bot(edge: Process) -> None:
    for origin, admitted in ((SITE, True), ("https://evil.example", False)):
        headers = {"Origin": origin}
        visitor = Visitor(edge, "shopbot", headers=headers, first=None)
        if admitted:
            async with visitor:
                await visitor.say("hi")
                await visitor.wait_for_record("hi")
        else:
            frames, _ = await (await visitor.dial()).closed()
            assert frames[0]["type"] == "error"
        url = f"http://{edge.address}/api/v1/embed/shopbot/messages/person?session_id={visitor.session}"
        answer = await get(url, headers=headers)
        assert answer.status_code == (200 if admitted else 403)
        assert ("access-control-allow-origin" in answer.headers) is admitted


async def test_a_visitor_reaches_nothing_else_of_the_tenant(edge: Process) -> None:
    visitor = Visitor(edge)
    base = f"http://{edge.address}"
    for path in (
        f"/api/v1/pipelines/{BOT}/ws/messages/person",
        f"/api/v1/pipelines/{BOT}/ws/connections",
        "/v1/tenants/acme/messages?address.agent=x",
    ):
        assert (await get(base + path)).status_code == 401, path
    # Not even with a frame of another protocol.
    async with visitor:
        await visitor.send({"type": "subscribe", "id": "s", "conversation": "group:other"})
        await visitor.send({"type": "ping"})
        assert (await visitor.frame())["type"] == "pong"
    with pytest.raises(InvalidStatus):
        await connect(f"ws://{edge.address}/v1/connect?tenant=acme&agent={BOT}&platform=web_page")


async def test_feedback_is_logged_for_backends(edge: Process) -> None:
    visitor = Visitor(edge)
    status, body = await visitor.call("POST", "feedback", json={"message_id": 7, "feedback_type": 2})
    assert (status, body["code"]) == (200, 0)
    for wrong in ({"feedback_type": 4}, {"feedback_type": True}, {"feedback_type": "1"}, {}, []):
        status, body = await visitor.call("POST", "feedback", json=wrong)
        assert (status, body["code"], body["msg"][:30]) == (400, -1, "feedback_type must be 1 (like)"), wrong
    where = {"address.user": "langbot.feedback"}
    listed = await get(
        f"http://{edge.address}/v1/tenants/acme/messages",
        params=where,
        headers={"Authorization": "Bearer secret"},
    )
    [message] = listed.json()["messages"]
    [part] = message["parts"]
    logged = json.loads(part["custom"]["json"])
    assert (logged["bot_uuid"], logged["message_id"], logged["feedback_type"]) == (BOT, "7", 2)


async def test_erasing_a_visitor_erases_their_chat(edges: EdgeFleet) -> None:
    async with Visitor(edges.plain) as visitor, Visitor(edges.plain) as other:
        for each in (visitor, other):
            await each.say("mine")
            await each.wait_for_record("mine")
        with OperatorClient(edges.router.address, edges.fleet.operator_key) as operator:
            operator.erase_user("acme", visitor.session)
        assert (await visitor.messages(), await other.messages()) == ([], ["mine"])


async def test_turnstile_and_the_files_of_the_widget_are_served(edge: Process) -> None:
    visitor = Visitor(edge)
    status, body = await visitor.call("POST", "turnstile/verify", json={"token": "t"})
    assert (status, body["data"]["token"].partition(".")[2].endswith("dummy")) == (200, True)
    assert (await visitor.call("POST", "turnstile/verify", json={}))[0] == 400
    script = await get(f"http://{edge.address}/api/v1/embed/{BOT}/widget.js")
    assert (script.status_code, "max-age=300" in script.headers["cache-control"]) == (200, True)
    logo = await get(f"http://{edge.address}/api/v1/embed/logo")
    assert (logo.headers["content-type"], logo.content[:4]) == ("image/webp", b"RIFF")


async def test_a_bot_that_is_no_longer_declared_loses_its_visitors(edges: EdgeFleet) -> None:
    with OperatorClient(edges.router.address, edges.fleet.operator_key) as operator:
        operator.create("brief", web_page_bots=["briefbot"])
        wait_until_known("brief", edges.plain)
        async with Visitor(edges.plain, "briefbot") as visitor:
            operator.revoke("brief", all=True)
            await visitor.closed()
        async with Visitor(edges.plain, "briefbot", session=visitor.session) as again:
            operator.update("brief", web_page_bots=[])
            await again.closed()
        status, _ = await visitor.call("GET", f"messages/person?session_id={visitor.session}")
        assert status == 404
