"""LangBot's HTTP routes: the RPCs they make, and their replies."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from trunkline.v1 import catalogue
from trunkline.v1.history_service_pb2 import ListMessagesResponse
from trunkline.v1.message_pb2 import MESSAGE_STATE_COMPLETE, Message
from trunkline.v1.presence_service_pb2 import Connection, ListConnectionsResponse
from trunkline_edge.dialects.dialect import CallRefused, HttpReply, HttpRequest, RouterCall
from trunkline_edge.dialects.langbot.records import CONVERSATION_ID, PLATFORM, SESSION_TYPES
from trunkline_edge.dialects.langbot.rest_routes import MAX_LISTED, MAX_LISTED_BYTES, routes
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.declared_tenants import policy

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
ROUTES = {route.path.text.split("/")[6]: route for route in routes(lambda: NOW)}
TENANTS = TenantPolicies([policy("acme", pipelines=["p1"])])


def asked(name: str, body: bytes = b"") -> Any:
    """The running handler of a request to one of the routes."""
    parameters = {"pipeline": "p1", "session_type": "person"}
    return ROUTES[name].handle(HttpRequest(parameters, [], {}, body, TENANTS))


def driven(handling: Any, answer: Any) -> tuple[list[RouterCall], HttpReply]:
    """Run a handler with these responses; returns its RPCs and its reply."""
    calls: list[RouterCall] = []
    try:
        call = next(handling)
        while True:
            kept = type(call.request)()
            kept.CopyFrom(call.request)
            calls.append(RouterCall(call.rpc, kept))
            call = handling.send(answer(call.request))
    except StopIteration as stop:
        return calls, stop.value


def log_of(count: int, text: str) -> list[Message]:
    messages = [Message(state=MESSAGE_STATE_COMPLETE) for _ in range(count)]
    for seq, message in enumerate(messages, 1):
        message.position.epoch, message.position.seq = "e", seq
        message.address.conversation.id = CONVERSATION_ID
        message.parts.add().text.text = text
    return messages


@pytest.mark.parametrize(
    ("there", "text", "page", "listed"),
    [
        (0, "", 10, 0),
        (7, "", 10, 7),
        (25, "", 10, 25),
        (MAX_LISTED, "", 100, MAX_LISTED),
        (MAX_LISTED + 50, "", 123, MAX_LISTED),
        # A page is a quarter of the maximum.
        (100, "x" * (MAX_LISTED_BYTES // 20), 5, 20),
    ],
)
def test_the_newest_messages_are_listed_within_bounds(there: int, text: str, page: int, listed: int) -> None:
    log = log_of(there, text)

    def answer(request: Any) -> ListMessagesResponse:
        end = request.before.seq - 1 if request.HasField("before") else there
        begin = max(0, end - min(page, request.limit))
        return ListMessagesResponse(messages=log[begin:end], more=begin > 0)

    calls, reply = driven(asked("messages"), answer)
    ids = [record["id"] for record in reply.body["data"]["messages"]]
    assert ids == list(range(there - listed + 1, there + 1))
    assert len(calls) <= max(1, -(-listed // page))


def test_connections_are_counted_over_all_pages_and_only_those_of_langbot() -> None:
    def connection(agent: str, session_type: str, platform: str = PLATFORM) -> Connection:
        found = Connection(connection_id=f"{agent}-{session_type}-{platform}")
        found.address.agent, found.address.platform = agent, platform
        found.address.conversation.kind = SESSION_TYPES[session_type]
        found.address.conversation.id = CONVERSATION_ID
        return found

    pages = {
        "": ListConnectionsResponse(
            connections=[connection("p1", "person"), connection("p1", "person", "web")], next_page_token="2"
        ),
        "2": ListConnectionsResponse(connections=[connection("p2", "group"), connection("p1", "group")]),
    }
    calls, reply = driven(asked("connections"), lambda request: pages[request.page_token])
    assert [call.request.address.tenant for call in calls] == ["acme", "acme"]
    assert reply.body["data"]["stats"] == {
        "total_connections": 3,
        "pipelines": 2,
        "connections_by_pipeline": {"p1": 2, "p2": 1},
        "connections_by_session_type": {"person": 1, "group": 2},
    }
    shown = [each["connection_id"] for each in reply.body["data"]["connections"]]
    assert shown == ["p1-person-langbot", "p1-group-langbot"]


@pytest.mark.parametrize(
    ("entry", "status", "text"),
    [
        (catalogue.UNAUTHORIZED, 401, "No valid user token provided"),
        (catalogue.UNKNOWN_TENANT, 404, "Pipeline not found"),
        (catalogue.ROUTER_UNAVAILABLE, 503, catalogue.ROUTER_UNAVAILABLE.text),
        (
            catalogue.INTERNAL,
            500,
            f"Internal server error: {catalogue.INTERNAL.text}",
        ),
    ],
)
@pytest.mark.parametrize("name", ROUTES)
def test_refusals_have_the_texts_of_langbot(
    name: str, entry: catalogue.Entry, status: int, text: str
) -> None:
    handling = asked(name, b'{"message":"hello"}')
    next(handling)
    with pytest.raises(CallRefused) as refused:
        handling.throw(CallRefused(entry.code, entry.text, entry.http_status))
    render = ROUTES[name].render_refusal
    assert render is not None
    assert render(refused.value) == HttpReply(status, {"code": -1, "msg": text})
