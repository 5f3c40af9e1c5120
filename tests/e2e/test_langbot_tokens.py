"""LangBot's own tokens, which its web client sends on every request and in its first frame."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.langbot_client import ChatClient, EdgeFleet, RestClient, edges_of
from tests.e2e.langbot_tokens import ACCOUNT, DASH, WORKSPACE, headers, token
from tests.e2e.operator_client import OperatorClient
from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.processes import Process

TENANTS = f"""
[tenants.acme]
open_to = "loopback"
pipelines = ["open"]
[tenants.anybody]
open_to = "anybody"
pipelines = ["public"]
{DASH}[tenants.other]
pipelines = ["p2"]
audiences = ["langbot-instance:other"]
[[tenants.other.keys]]
kid = "langbot"
algorithm = "HS256"
secret = "another secret of 32 characters!"
"""
ROUTES = (("GET", "messages/person"), ("GET", "connections"), ("POST", "reset/group"))
NO_TOKEN = (401, {"code": -1, "msg": "No valid user token provided"})


def authenticate(value: str) -> dict[str, str]:
    """The first frame of the web client."""
    return {"type": "authenticate", "token": value, "workspace_uuid": WORKSPACE}


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeFleet]:
    with edges_of(tmp_path_factory.mktemp("langbot"), TENANTS) as started:
        yield started


@pytest.fixture
def edge(edges: EdgeFleet) -> Process:
    return edges.plain


async def test_a_declared_key_and_audience_admit_langbots_users(edge: Process) -> None:
    mine = token()
    # A pipeline that no tenant declares belongs to the tenant of the token's audience.
    for pipeline in ("p1", "undeclared"):
        calls = RestClient(edge, pipeline, headers(mine))
        for session_type in ("person", "group"):
            async with ChatClient(edge, pipeline, session_type, first=authenticate(mine)) as chat:
                await chat.say(f"hello {session_type}")
                await chat.wait_for_record(f"hello {session_type}")
                listed = await calls.connections()
                assert [each["session_type"] for each in listed["connections"]] == [session_type]
                assert (await calls.ok("POST", "broadcast", json={"message": "soon"}))["message"]
                assert (await chat.next("broadcast"))["message"] == "soon"
            records = await calls.messages(session_type)
            assert [record["content"] for record in records] == [f"hello {session_type}"]
            await calls.reset(session_type)
            assert await calls.messages(session_type) == []


async def test_an_account_that_is_not_stored_is_known_by_its_address(edge: Process) -> None:
    mine = token(sub=..., account_revision=...)
    async with ChatClient(edge, "p1", first=authenticate(mine)) as chat:
        await chat.say("hi")
        await chat.wait_for_record("hi")
    await RestClient(edge, "p1", headers(mine)).messages()


@pytest.mark.parametrize(
    "claims",
    [
        {"secret": "another secret of 32 characters!"},
        {"aud": "langbot-instance:other"},
        {"aud": ...},
        {"exp": 1_700_000_000},
        {"exp": ...},
    ],
    ids=str,
)
async def test_a_wrong_token_is_refused_if_one_is_needed(edge: Process, claims: dict[str, Any]) -> None:
    wrong = token(**claims)
    for route in ROUTES:
        status, body = await RestClient(edge, "p1", headers(wrong)).call(*route)
        assert (status, body["code"], set(body)) == (401, -1, {"code", "msg"})
    chat = await ChatClient(edge, "p1", first=authenticate(wrong)).dial()
    frames, code = await chat.closed()
    # A client with an expired token may reconnect with a new one.
    assert [frame["type"] for frame in frames] == ["error"]
    assert code == (1013 if claims.get("exp", ...) is not ... else 1000)


@pytest.mark.parametrize(
    "value", ["a.b.c", token(), token(secret="another secret of 32 characters!")], ids=len
)
async def test_an_open_tenant_ignores_the_token_and_never_answers_401(edge: Process, value: str) -> None:
    for pipeline in ("open", "public"):
        calls = RestClient(edge, pipeline, headers(value))
        await calls.messages()
        await calls.connections()
        await calls.ok("POST", "broadcast", json={"message": "x"})
        status, body = await calls.call("POST", "reset/person")
        # Callers of a tenant that is open to anybody need proof to erase, and stay logged in.
        assert (status, body["code"]) == ((200, 0) if pipeline == "open" else (403, -1))
        async with ChatClient(edge, pipeline, first=authenticate(value)) as chat:
            await chat.say("hi")
            await chat.wait_for_record("hi")


async def test_a_token_allows_langbots_chat_and_nothing_else(edge: Process) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://{edge.address}", headers=headers(token()), timeout=patient(15)
    ) as http:
        where = {"address.agent": "p1", "address.platform": "langbot"}
        where |= {
            "address.conversation.kind": "CONVERSATION_KIND_PERSON",
            "address.conversation.id": "langbot",
        }
        assert (await http.get("/v1/tenants/dash/messages", params=where)).status_code == 200
        for name, value in (("platform", "web"), ("conversation.id", ACCOUNT)):
            answer = await http.get("/v1/tenants/dash/messages", params=where | {f"address.{name}": value})
            assert answer.status_code == 403, name
        # Nor what takes an API key, elsewhere than on LangBot's routes.
        assert (await http.get("/v1/tenants/dash/stats")).status_code == 403
        reset = {"address": {"agent": "p1", "platform": "langbot"}}
        answer = await http.post("/v1/tenants/dash/conversations:reset", json=reset)
        assert answer.status_code == 403
    assert await RestClient(edge, "p2", headers(token())).call("GET", "connections") == NO_TOKEN


async def test_a_revoked_token_is_refused(edges: EdgeFleet) -> None:
    mine = token(sub="someone-else", iat=int(time.time()) - 5)
    calls = RestClient(edges.plain, "p1", headers(mine))
    for route in ROUTES:
        await calls.ok(*route)
    with OperatorClient(edges.router.address, edges.fleet.operator_key) as operator:
        operator.revoke("dash", user="someone-else")
    for route in ROUTES:
        status, body = await calls.call(*route)
        assert (status, body["code"]) == (401, -1), route


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/system/info", 404),
        ("GET", "/api/v1/pipelines", 404),
        ("POST", "/api/v1/user/check-token", 404),
        ("PUT", "/api/v1/pipelines/open/ws/messages/person", 405),
        ("GET", "/api/v1/pipelines/open/ws/connect", 426),
        ("POST", "/api/v1/pipelines/open/ws/connect", 405),
        ("GET", "/api/v1/pipelines/open/ws/messages/person?q=%ff", 400),
        ("POST", "/api/v1/pipelines/open/ws/broadcast", 415),
    ],
)
def test_errors_below_langbots_paths_have_its_form(
    edge: Process, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, f"http://{edge.address}{path}", content=b"x" if method != "GET" else b"")
    body = answer.json()
    assert (answer.status_code, body["code"], set(body)) == (status, -1, {"code", "msg"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/tenants/acme/nothing", 404),
        ("GET", "/api/v1/message/x", 404),
        ("DELETE", "/api/v1/tenants/acme/connections", 405),
        ("GET", "/ws/acme/web", 426),
    ],
)
def test_errors_below_maims_paths_have_its_form(edge: Process, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"http://{edge.address}{path}")
    assert (answer.status_code, set(answer.json())) == (status, {"detail"})


async def test_maims_routes_take_a_clients_token_for_what_a_client_may_do(edge: Process) -> None:
    base = f"http://{edge.address}/api/v1/tenants/dash"
    async with httpx.AsyncClient(headers=headers(token()), timeout=patient(15)) as http:
        for answer in (
            await http.get(f"{base}/connections"),
            await http.post(f"{base}/agents/p1/platforms/web/broadcast", json={"text": "hi"}),
        ):
            # Verified, and not enough.
            assert (answer.status_code in (400, 403), set(answer.json())) == (True, {"detail"}), answer.text
        wrong = headers(token(aud="other"))
        assert (await http.get(f"{base}/connections", headers=wrong)).status_code == 401
