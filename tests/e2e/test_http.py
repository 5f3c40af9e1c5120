"""Every unary RPC over HTTP, through an edge to a router, with its effect."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from trunkline.v1.agent_service_pb2 import Reject, Settlement
from trunkline_edge.http.bindings import bindings

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.http_backend import HttpBackend, reason_of
from tests.e2e.polling import wait_until
from tests.e2e.recording_client import RecordingClient, frame_text
from tests.e2e.streaming_worker import StreamingWorker
from tests.validators.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

TEAM = {"agent": "echo", "platform": "web", "conversation": {"kind": "CONVERSATION_KIND_GROUP", "id": "team"}}
IN_TEAM = {
    "address__agent": "echo",
    "address__platform": "web",
    "address__conversation__kind": "CONVERSATION_KIND_GROUP",
    "address__conversation__id": "team",
}
#: RPCs that the tests here call.
CALLED = {
    "Broadcast", "OpenMessage", "ExtendMessage", "EndMessage", "CancelMessage", "CancelReplies",
    "ListMessages", "GetMessage",
    "EditMessage", "RecallMessage", "ListReceipts", "MarkRead", "ResetConversation",
    "ListConnections", "CountConnections", "ListTopics", "GetStats", "CloseConnections", "ListDeadLetters",
    "ReplayDeadLetters", "UploadMedia", "GetMedia",
}  # fmt: skip


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("http"), TRUNKLINE_MAX_ATTEMPTS="1") as started:
        yield started


@pytest.fixture
def edge(fleet: Fleet) -> str:
    return next(process.address for process in fleet.processes if process.name == "edge")


@pytest.fixture
def backend(edge: str) -> Iterator[HttpBackend]:
    with HttpBackend(edge) as calling:
        calling.administer("/conversations:reset", address=TEAM)
        yield calling


def text(words: str) -> list[dict[str, object]]:
    return [{"text": {"text": words}}]


async def test_a_message_is_sent_read_edited_and_recalled(edge: str, backend: HttpBackend) -> None:
    async with RecordingClient(History(), "demo/ann", edge) as ann:
        sent = backend.post("/messages", address=TEAM, parts=text("helo"), idempotencyKey="k")
        assert sent["connections"] == 1
        assert sent["position"]["seq"] == "1"
        assert backend.post("/messages", address=TEAM, parts=text("helo"), idempotency_key="k") == sent
        assert frame_text(await ann.next("message")) == "helo"
        page = backend.get("/messages", **IN_TEAM, limit=10)
        assert [message["id"] for message in page["messages"]] == [sent["messageId"]]
        path = f"/messages/{sent['messageId']}"
        assert backend.patch(path, parts=text("hello"))["position"]["seq"] == "2"
        assert frame_text((await ann.next("change", kind="edited"))["message"]) == "hello"
        assert backend.get(path)["message"]["parts"] == text("hello")
        assert backend.post(f"{path}:recall")["position"]["seq"] == "3"
        await ann.next("change", kind="recalled")
        assert backend.get(path)["message"]["state"] == "MESSAGE_STATE_RECALLED"
        assert backend.administer("/conversations:reset", address=TEAM) == {"erased": "1"}
        assert backend.get("/messages", **IN_TEAM) == {"messages": [], "more": False}


async def test_a_message_is_streamed_and_another_is_cancelled(edge: str, backend: HttpBackend) -> None:
    async with RecordingClient(History(), "demo/ann", edge) as ann:
        opened = backend.post("/messages:open", address=TEAM, key="one")
        path = f"/messages/{opened['message']['id']}"
        deltas = [{"index": 0, "text": "one "}, {"index": "1", "text": "two"}]
        assert backend.post(f"{path}:extend", epoch=opened["epoch"], deltas=deltas)["nextIndex"] == "2"
        gap = {"epoch": opened["epoch"], "deltas": [{"index": 7, "text": "x"}]}
        refused = backend.http.post(f"{path}:extend", json=gap)
        assert (refused.status_code, reason_of(refused)) == (409, "DELTA_GAP")
        assert refused.json()["details"][0]["metadata"]["expected"] == "2"
        ended = backend.post(
            f"{path}:end", epoch=opened["epoch"], state="MESSAGE_STATE_COMPLETE", nextIndex=2
        )
        assert ended["state"] == "MESSAGE_STATE_COMPLETE"
        change = await ann.next("change", kind="ended")
        assert ann.texts.text[change["message_id"]] == "one two"
        second = backend.post("/messages:open", address=TEAM, key="two")["message"]["id"]
        assert backend.post(f"/messages/{second}:cancel") == {"state": "MESSAGE_STATE_CANCELLED"}


async def test_connections_and_receipts_are_listed_and_a_connection_is_closed(
    edge: str, backend: HttpBackend
) -> None:
    async with RecordingClient(History(), "demo/ann", edge) as ann:
        sent = backend.post("/messages", address=TEAM, parts=text("hello"))
        message = await ann.next("message")
        await ann.send({"type": "read", "position": message["position"]})
        await ann.next("read", user="ann")
        (receipt,) = backend.get("/receipts", **IN_TEAM)["receipts"]
        assert (receipt["user"], receipt["read"]) == ("ann", sent["position"])
        marked = backend.post("/receipts:read", address=TEAM, position=sent["position"], user="bob")
        assert marked["position"] == sent["position"]
        backend.post(
            "/messages", address=TEAM, parts=text("?"), author={"role": "ROLE_USER"}, idempotencyKey="q"
        )
        cancelled = backend.post("/messages:cancelReplies", address=TEAM, clientId="q")
        assert cancelled == {"replies": [], "prevented": True}
        assert (await ann.next("read", user="bob"))["at"]["seq"] == int(marked["at"]["seq"])
        (connection,) = backend.get("/connections", address__user="ann")["connections"]
        assert connection["protocol"] == "trunkline.v1.json"
        assert backend.get("/connections:count") == {"connections": 1, "users": 1}
        topics = backend.get("/topics", address__agent="echo", page_size=10)["topics"]
        assert {"tenant": "demo", **TEAM} in [topic["address"] for topic in topics]
        assert backend.get("/stats")["connections"] == 1
        closed = backend.administer("/connections:close", address={"user": "ann"}, reason="enough")
        assert closed == {"connections": 1}
        assert (await ann.next("closing"))["reason"] == "CLOSED_BY_BACKEND"


async def test_dead_letters_are_listed_and_replayed(fleet: Fleet, edge: str, backend: HttpBackend) -> None:
    async with (
        RecordingClient(History(), "demo/ann", edge) as ann,
        StreamingWorker(fleet.router.address) as worker,
    ):
        await ann.next("ack", id=await ann.say("too hard"))
        delivery = await worker.wait_for_delivery("too hard")
        rejected = Settlement(delivery_id=delivery.delivery_id, reject=Reject(reason="too hard"))
        await worker.send(settlements=[rejected])
        await wait_until(lambda: worker.results, "it is given up")
        (letter,) = backend.get("/agents/echo/deadLetters")["deadLetters"]
        assert letter["deliveryId"] == str(delivery.delivery_id)
        replayed = backend.post("/agents/echo/deadLetters:replay", deliveryIds=[letter["deliveryId"]])
        assert replayed == {"replayed": 1}
        await wait_until(lambda: len(worker.deliveries) == 2, "it is delivered again")
        await worker.settle(worker.deliveries[1].delivery_id)
        assert backend.get("/agents/echo/deadLetters") == {"deadLetters": [], "more": False}


def test_media_is_stored_and_read(backend: HttpBackend) -> None:
    content = base64.b64encode(b"\x89PNG").decode()
    stored = backend.post("/media", content=content, mimeType="image/png")
    assert backend.get(f"/media/{stored['key']}") == {"content": content, "mimeType": "image/png"}


def test_every_rpc_is_called_here() -> None:
    """Except those of TenantService and AuditService, which test_access.py calls."""
    unary = {binding.method for binding in bindings() if not binding.method.server_streaming}
    elsewhere = {"TenantService", "AuditService"}
    called = {method.name for method in unary if method.containing_service.name not in elsewhere}
    assert called == CALLED


def test_errors_are_those_of_the_catalogue(edge: str, backend: HttpBackend) -> None:
    missing = backend.http.get("/messages/none")
    assert (missing.status_code, reason_of(missing)) == (404, "MESSAGE_NOT_FOUND")
    nobody = backend.http.post(
        "/messages", json={"address": TEAM, "parts": text("x"), "requireConnection": True}
    )
    assert (nobody.status_code, reason_of(nobody)) == (404, "NO_ACTIVE_CONNECTION")
    assert nobody.json()["details"][1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
    backend.post("/messages", address=TEAM, parts=text("x"), idempotencyKey="twice")
    other = {"address": TEAM, "parts": text("y"), "idempotencyKey": "twice"}
    again = backend.http.post("/messages", json=other)
    assert (again.status_code, reason_of(again)) == (409, "IDEMPOTENCY_MISMATCH")
    with HttpBackend(edge, "nobody") as stranger:
        unknown = stranger.http.get("/stats")
        assert (unknown.status_code, reason_of(unknown)) == (404, "UNKNOWN_TENANT")
    with HttpBackend(edge, "de%2Fmo") as stranger:
        slash = stranger.http.get("/stats")
        assert (slash.status_code, reason_of(slash)) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("ident", ["a@b.c", "~x", "..", "群 1", "a:end", "a/b", "%41", "a+b", "?#&="])
def test_an_id_arrives_unchanged(backend: HttpBackend, ident: str) -> None:
    # Not through httpx, which resolves `..` in paths.
    with closing(HTTPConnection(backend.http.base_url.netloc.decode())) as connection:
        connection.request("GET", f"/v1/tenants/demo/messages/{quote(ident, safe='')}")
        refusal = json.loads(connection.getresponse().read())
    assert refusal["message"] == f"Message {ident} does not exist"


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ({"content": b"{}"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({"data": {"parts": "x"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ({"content": b"{}", "headers": {"content-type": "application/json; charset=utf-16"}}, 415, ""),
        ({"json": {}, "headers": {"content-encoding": "gzip"}}, 415, ""),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "INVALID_ARGUMENT"),
        (
            {"content": b" " * (14 << 20), "headers": {"content-type": "application/json"}},
            413,
            "BODY_TOO_LARGE",
        ),
        ({"json": {"parts": text("x" * (12 << 20))}}, 400, "INVALID_ARGUMENT"),
        ({"json": {}, "headers": {"authorization": b"Bearer \xe9"}}, 401, "UNAUTHORIZED"),
    ],
)
def test_an_undecodable_body_is_rejected(
    backend: HttpBackend, options: dict[str, Any], status: int, reason: str
) -> None:
    response = backend.http.post("/messages", **options)
    assert response.status_code == status, response.text
    assert reason_of(response) == (reason or "UNSUPPORTED_MEDIA_TYPE")


def test_a_large_message_passes_in_both_directions(backend: HttpBackend) -> None:
    inline = "A" * (10 << 20)
    sent = backend.post("/messages", address=TEAM, parts=[{"image": {"inline": inline}}])
    (part,) = backend.get(f"/messages/{sent['messageId']}")["message"]["parts"]
    assert part["image"]["inline"] == inline


def test_unsupported_methods_are_rejected(backend: HttpBackend) -> None:
    refused = backend.http.delete("/messages")
    assert (refused.status_code, reason_of(refused)) == (405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    options = backend.http.options("/messages/x:end")
    assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, POST")
    head = backend.http.head("/stats")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(backend.http.get("/stats").content))
    assert backend.http.post("/stats", json={}).status_code == 405
    with_body = backend.http.request("GET", "/stats", json={})
    assert (with_body.status_code, reason_of(with_body)) == (400, "INVALID_ARGUMENT")
    nothing = backend.http.get("/nothing")
    assert (nothing.status_code, reason_of(nothing)) == (404, "NO_SUCH_PATH")


def test_the_openapi_document_is_cached(backend: HttpBackend) -> None:
    url = backend.http.base_url.join("/openapi.json")
    first = backend.http.get(url)
    assert first.json()["openapi"] == "3.1.0"
    again = backend.http.get(url, headers={"if-none-match": f'W/"x", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")


async def test_an_edge_without_its_router_says_when_to_retry(fleet: Fleet, backend: HttpBackend) -> None:
    backend.get("/stats")
    fleet.router.kill()
    gone = backend.http.get("/stats")
    assert (gone.status_code, reason_of(gone)) == (503, "ROUTER_UNAVAILABLE")
    assert gone.headers["retry-after"] == "1"
    fleet.start_router()
    await wait_until(lambda: backend.http.get("/stats").status_code == 200, "the edges are linked again")
