"""Clients that listen by event stream and speak by HTTP, with one token for both."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from trunkline.v1.access_pb2 import RIGHT_UNSPECIFIED
from trunkline_edge.auth.principal import RIGHTS
from trunkline_edge.http.bindings import Binding, bindings

from tests.e2e.http_backend import HttpBackend, reason_of
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.e2e.recording_event_client import RecordingEventClient
from tests.e2e.token_clients import SIGNER, TENANT, bearer, token_fleet
from tests.e2e.ui_message_client import UiChat
from tests.support.patience import patient
from tests.support.processes import OPERATOR_KEY, ROOT
from tests.support.signing import Signer
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.e2e.fleet import Fleet
    from tests.support.processes import Process

#: The tenant of the worker, whose clients need tokens here.
DEMO = Signer("demo")
TEAM = {"kind": "CONVERSATION_KIND_GROUP", "id": "team"}


def address(**conversation: str) -> dict[str, Any]:
    return {"agent": "echo", "platform": "web", "conversation": conversation or TEAM}


def text(words: str) -> list[dict[str, object]]:
    return [{"text": {"text": words}}]


IN_TEAM = {
    "address__agent": "echo",
    "address__platform": "web",
    "address__conversation__kind": TEAM["kind"],
    "address__conversation__id": TEAM["id"],
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with token_fleet(tmp_path_factory.mktemp("spoken")) as started:
        with OperatorClient(started.router.address, started.operator_key, started.edges) as operator:
            operator.update("demo", client_auth=client_auth([DEMO]))
        started.start_worker("reply")
        yield started


def caller(edge: Process, token: str, tenant: str = TENANT) -> HttpBackend:
    return HttpBackend(edge.address, tenant, **bearer(token))


def caller_from(address: str, edge: Process, tenant: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    url = f"http://{edge.address}/v1/tenants/{tenant}"
    return httpx.Client(base_url=url, transport=transport, timeout=patient(15))


def outcome(response: httpx.Response) -> tuple[int, str]:
    """Return the status, and the error code if there is one."""
    return response.status_code, reason_of(response) if response.is_error else ""


async def test_a_page_without_websockets_chats_with_an_agent(edge: Process) -> None:
    token = DEMO.token("ann", trunkline={"conversations": ["group:team", "person:ann"]})
    history = History()
    async with RecordingEventClient(history, "demo/ann", edge.address, token=token) as page:
        with caller(edge, token, "demo") as calls:
            said: dict[str, Any] = {"address": address(), "parts": text("tea?"), "idempotencyKey": "m1"}
            sent = calls.post("/messages", **said)
            assert calls.post("/messages", **said) == sent
            # The page receives what it said, as it would from another device, and the answer.
            mine = await page.next("message", id=sent["messageId"])
            assert (mine["author"], mine["client_id"]) == ({"role": "user", "user": "ann"}, "m1")
            reply = await page.next("message", reply_to=sent["messageId"])
            assert frame_text(reply) == "re: tea?"
            # The same message, by a socket, is the same message.
            async with RecordingClient(
                history, "demo/ann", edge.address, additional_headers=bearer(token)
            ) as socket:
                parts = [{"type": "text", "text": "tea?"}]
                where = {"kind": "group", "id": "team"}
                for more in ({}, {"conversation": where}):
                    await socket.send({"type": "message", "id": "m1", "parts": parts} | more)
                    ack = await socket.next("ack", id="m1")
                    assert ack["message_id"] == sent["messageId"]
            read = calls.post("/receipts:read", address=address(), position=sent["position"])
            assert read["position"] == sent["position"]
            assert (await page.next("read"))["user"] == "ann"
            calls.patch(f"/messages/{sent['messageId']}", parts=text("coffee?"))
            change = await page.next("change", message_id=sent["messageId"])
            assert change["kind"] == "edited"
            listed = calls.get("/messages", **IN_TEAM)["messages"]
            assert [each["parts"] for each in listed] == [text("coffee?"), text("re: tea?")]
            assert calls.get(f"/messages/{listed[1]['id']}")["message"] == listed[1]
            assert [each["user"] for each in calls.get("/receipts", **IN_TEAM)["receipts"]] == ["ann"]
            calls.post(f"/messages/{sent['messageId']}:recall")
            await page.next("change", message_id=sent["messageId"])
            # Cancelled too late: the reply had ended.
            cancelled = calls.post(f"/messages/{reply['id']}:cancel")
            assert cancelled == {"state": "MESSAGE_STATE_COMPLETE"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_example_on_the_page_publishes_one_message(edge: Process) -> None:
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    (command,) = re.findall(r"```sh client\n(.*?)```", page, re.DOTALL)
    command = command.replace("127.0.0.1:8080", edge.address).replace("curl", "curl -sS --noproxy '*'")
    env = os.environ | {"TOKEN": SIGNER.token("ann")}
    run = ["sh", "-c", command]
    first, second = (
        json.loads(subprocess.run(run, env=env, capture_output=True, timeout=patient(20), check=True).stdout)
        for _ in range(2)
    )
    assert first == second
    with caller(edge, env["TOKEN"]) as ann:
        message = ann.get(f"/messages/{first['messageId']}")["message"]
    assert (message["author"]["user"], message["clientId"]) == ("ann", "m1")


def test_the_page_lists_the_calls_of_clients() -> None:
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    rows = re.findall(r"^\| (`(?:GET|POST|PATCH) .*) \| .* \| `(\w+)`.* \|$", page, re.MULTILINE)
    listed = {
        call.replace("…", "/v1/tenants/{tenant}"): right
        for calls, right in rows
        for call in re.findall(r"`([A-Z]+ .+?)`", calls)
    }
    of_clients = [each for each in bindings() if each.client_right != RIGHT_UNSPECIFIED]

    def openapi_path(binding: Binding) -> str:
        return binding.template.replace("address.", "").replace("message_id", "messageId")

    assert listed == {
        f"{each.http_method} {openapi_path(each)}": name
        for each in of_clients
        for name, right in RIGHTS.items()
        if right == each.client_right
    }


def request_of(binding: Binding, tenant: str) -> tuple[str, str, dict[str, Any]]:
    """Method, path and body of a request that names its tenant and nothing else."""
    values = iter([tenant, *"xyz"] if binding.tenant_at == 0 else "xyz")
    path = re.sub(r"\{[\w.]+\}", lambda _: next(values), binding.template)
    return binding.http_method, path.removeprefix("/v1"), {"json": {}} if binding.has_body else {}


def test_each_call_takes_the_right_that_the_contract_states(edge: Process) -> None:
    names = {value: name for name, value in RIGHTS.items()}
    with httpx.Client(base_url=f"http://{edge.address}/v1", trust_env=False, timeout=15) as http:
        for right in RIGHTS:
            headers = bearer(SIGNER.token(f"of {right}".replace(" ", "-"), trunkline={"rights": [right]}))
            for binding in bindings():
                method, path, body = request_of(binding, TENANT)
                response = http.request(method, path, headers=headers, **body)
                if binding.client_right == RIGHT_UNSPECIFIED:
                    assert outcome(response) == (403, "FORBIDDEN"), str(binding)
                    assert "a client's token does not allow this call; it takes" in response.text
                elif names[binding.client_right] == right:
                    assert response.status_code in (400, 404), (str(binding), response.text)
                else:
                    assert outcome(response) == (403, "FORBIDDEN"), str(binding)
                    assert "the token does not grant the right to" in response.text


def test_a_token_is_verified_as_for_a_connection(edge: Process, operator: OperatorClient) -> None:
    def asked(token: str, tenant: str = TENANT, header: str = "Authorization") -> tuple[int, str]:
        with HttpBackend(edge.address, tenant) as calls:
            query = {name.replace("__", "."): value for name, value in IN_TEAM.items()}
            headers = {header: f"Bearer {token}" if header == "Authorization" else token}
            return outcome(calls.http.get("/messages", params=query, headers=headers))

    good = SIGNER.token("ann")
    assert asked(good) == (200, "")
    head, payload, signature = good.split(".")
    assert asked(SIGNER.token("ann", lifetime_s=-5)) == (401, "TOKEN_EXPIRED")
    for wrong in (
        Signer(TENANT).token("ann"),
        SIGNER.token("ann", tenant="demo"),
        SIGNER.token("ann", exp=...),
        f"{head}.{payload}.",
        f"{head}.{payload}",
        f"{head}.{payload}.{signature[::-1]}",
        f"{head}.{payload}.{signature}.{signature}.{signature}",
    ):
        assert asked(wrong) == (401, "UNAUTHORIZED")
    # A tenant that is open to this machine does not accept a wrong token either.
    assert asked(good, "demo") == (401, "UNAUTHORIZED")
    assert asked(good, "nobody") == (404, "UNKNOWN_TENANT")
    # Only API keys and secrets go by this header.
    assert asked(good, header="X-API-Key") == (401, "UNAUTHORIZED")
    # Revoked tokens, of connections and calls alike.
    operator.revoke(TENANT, token_id="lost")
    assert asked(SIGNER.token("ann", jti="lost")) == (401, "TOKEN_REVOKED")
    operator.create("brief", client_auth=client_auth([brief := Signer("brief")]))
    # The edge waits for a tenant that was declared a moment ago.
    assert asked(brief.token("ann"), "brief") == (200, "")
    operator.suspend("brief")
    assert asked(brief.token("ann"), "brief") == (403, "TENANT_SUSPENDED")


def test_a_secret_that_clients_share_is_revoked_with_all_tokens(
    edge: Process, operator: OperatorClient
) -> None:
    operator.create("shared", client_auth=client_auth([], ["our secret"]))
    wait_until_known("shared", edge)
    said: dict[str, Any] = {"address": address(), "parts": text("hi")}
    with caller(edge, "our secret", "shared") as calls:
        calls.post("/messages", **said)
        operator.revoke("shared", all=True)
        assert outcome(calls.http.post("/messages", json=said)) == (401, "TOKEN_REVOKED")
        query = {name.replace("__", "."): value for name, value in IN_TEAM.items()}
        assert outcome(calls.http.get("/messages", params=query)) == (401, "TOKEN_REVOKED")


async def test_attempts_that_the_edge_refuses_are_in_the_audit_trail(
    edge: Process, operator: OperatorClient
) -> None:
    operator.create("tried", client_auth=client_auth([signer := Signer("tried")]))
    wait_until_known("tried", edge)
    # Attempts from one address are recorded once a minute, and other tests make some.
    with caller_from("127.0.0.2", edge, "tried") as http:
        for headers in ({}, bearer(signer.token("ann")), bearer("a.b.c")):
            erased = http.post("/users/bob:erase", json={}, headers=headers)
            assert erased.status_code in (401, 403)
        closed = http.post("/connections:close", json={"address": {"user": "ann"}})
        assert outcome(closed) == (401, "UNAUTHORIZED")

        def tried() -> set[tuple[str, str]]:
            found = http.get("/audit", headers=bearer(OPERATOR_KEY)).json()["entries"]
            return {(each["action"], each["source"]) for each in found if each["error"]}

        source = "127.0.0.2 via edge 127.0.0.1"
        wanted = {("EraseUser", source), ("CloseConnections", source)}
        await wait_until(lambda: tried() == wanted, "the attempts are recorded")


def test_a_user_reads_and_writes_only_their_own_conversations(edge: Process) -> None:
    secret = {"kind": "CONVERSATION_KIND_PERSON", "id": "bob"}
    said: dict[str, Any] = {"address": address(**secret), "parts": text("mine")}
    with caller(edge, SIGNER.token("bob")) as bob, caller(edge, SIGNER.token("eve")) as eve:
        ident = bob.post("/messages", **said)["messageId"]
        assert outcome(eve.http.post("/messages", json=said)) == (403, "FORBIDDEN")
        place = {f"address.{name}": value for name, value in (("agent", "echo"), ("platform", "web"))}
        place |= {f"address.conversation.{name}": value for name, value in secret.items()}
        assert len(bob.http.get("/messages", params=place).json()["messages"]) == 1
        for path in ("/messages", "/receipts"):
            assert outcome(eve.http.get(path, params=place)) == (403, "FORBIDDEN")
        for refused in (
            eve.http.get(f"/messages/{ident}"),
            eve.http.patch(f"/messages/{ident}", json={"parts": text("hers")}),
            eve.http.post(f"/messages/{ident}:recall"),
            eve.http.post(f"/messages/{ident}:cancel"),
        ):
            assert outcome(refused) == (404, "MESSAGE_NOT_FOUND")


def test_a_page_of_a_declared_origin_may_speak(edge: Process, operator: OperatorClient) -> None:
    signer, page = Signer("paged"), "https://chat.example"
    operator.create("paged", client_auth=client_auth([signer]), origins=[page])
    with HttpBackend(edge.address, "paged") as calls:
        for method, path in (("POST", "/messages"), ("PATCH", "/messages/m"), ("POST", "/receipts:read")):
            wanted = {
                "Origin": page,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type",
            }
            preflight = calls.http.options(path, headers=wanted)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == page
            assert method in preflight.headers["access-control-allow-methods"]
            assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        said: dict[str, Any] = {"address": address(), "parts": text("hi")}
        for token, status in ((signer.token("ann"), 200), (SIGNER.token("ann"), 401)):
            spoken = calls.http.post("/messages", json=said, headers={"Origin": page, **bearer(token)})
            assert (spoken.status_code, spoken.headers["access-control-allow-origin"]) == (status, page)
        elsewhere = {"Origin": "https://evil.example", **bearer(signer.token("ann"))}
        assert outcome(calls.http.post("/messages", json=said, headers=elsewhere)) == (
            403,
            "ORIGIN_FORBIDDEN",
        )


async def test_calls_of_a_user_are_limited_like_a_connection(edge: Process, operator: OperatorClient) -> None:
    signer = Signer("small")
    limits = {"frame_bytes": 2000, "connection_messages_per_s": 1}
    operator.create("small", client_auth=client_auth([signer]), limits=limits)
    url = f"http://{edge.address}/v1/tenants/small/messages"
    async with httpx.AsyncClient(trust_env=False, timeout=patient(15)) as http:

        async def send(user: str, words: str = "x") -> httpx.Response:
            said = {"address": address(), "parts": text(words)}
            return await http.post(url, json=said, headers=bearer(signer.token(user)))

        assert outcome(await send("eve", "x" * 3000)) == (413, "BODY_TOO_LARGE")
        # Together, so that they take less than their number in seconds.
        answers = await asyncio.gather(*(send("ann") for _ in range(20)))
        refused = [each for each in answers if each.is_error]
        assert 0 < len(refused) < 20
        assert {outcome(each) for each in refused} == {(429, "RATE_LIMITED")}
        assert "this user may send 1 messages" in refused[0].text
        # Others are not.
        assert outcome(await send("bob")) == (200, "")


@asynccontextmanager
async def page(edge: Process, user: str, chat: str, **claims: Any) -> AsyncIterator[UiChat]:
    """A page with the AI SDK and a token of tenant demo, whose worker replies."""
    headers = bearer(DEMO.token(user, **claims)) if user else {}
    opened = UiChat(edge.address, chat, **headers)
    async with opened.http:
        yield opened


async def refusal_of(chat: UiChat, method: str, suffix: str, **options: Any) -> int:
    return (await chat.http.request(method, f"{chat.api}{suffix}", **options)).status_code


async def test_chat_belongs_to_the_user_of_the_token(edge: Process) -> None:
    async with page(edge, "ann", "c1") as anns, page(edge, "bob", "c1") as bobs:
        async with anns.send("a secret", "m1") as stream:
            await stream.rest()
        assert [message["role"] for message in await anns.load()] == ["user", "assistant"]
        # The same id names another chat.
        assert await bobs.load() == []
        assert await bobs.stop() == {"cancelled": []}
        async with bobs.resume() as nothing:
            assert nothing.response.status_code == 204
        # Nor does another way lead there.
        chat = {"kind": "CONVERSATION_KIND_PERSON", "id": "ann»c1"}
        target = {"agent": "echo", "platform": "ai_sdk", "conversation": chat}
        for user in ("bob", "ann»c1"):
            with caller(edge, DEMO.token(user), "demo") as api:
                sent = api.http.post("/messages", json={"address": target, "parts": text("x")})
                assert outcome(sent) == (403, "FORBIDDEN")
        assert len(await anns.load()) == 2


async def test_page_without_the_right_token_gets_nothing(edge: Process) -> None:
    denied: list[tuple[str, dict[str, Any], int]] = [
        ("", {}, 200),
        ("ann", {"trunkline": {"agents": ["other"]}}, 403),
        ("ann", {"trunkline": {"platforms": ["web"]}}, 403),
        ("ann", {"trunkline": {"conversations": ["group:team"]}}, 403),
        ("ann", {"trunkline": {"rights": ["subscribe", "history", "cancel"]}}, 403),
        ("ann", {"trunkline": {"rights": ["publish"]}}, 403),
        ("ann»x", {}, 403),
        ("ann", {"exp": 1}, 401),
    ]
    for user, claims, status in denied:
        async with page(edge, user, "c2", **claims) as chat:
            body = chat.body("hello", f"m{user}")
            assert await refusal_of(chat, "POST", "", json=body) == status, (user, claims)
    async with page(edge, "ann", "c2", trunkline={"rights": ["publish", "subscribe"]}) as chat:
        assert await refusal_of(chat, "GET", "/c2") == 403
        assert await refusal_of(chat, "POST", "/c2/stop") == 403
    async with page(edge, "ann", "c2") as chat:
        assert await chat.load() == []
