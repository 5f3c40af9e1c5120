"""The HTTP routes of maim_message's tenant protocol, against scripted responses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.message import Message as ProtoMessage
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Position
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest, BroadcastResponse
from trunkline.v1.catalogue import Refused
from trunkline.v1.history_service_pb2 import (
    GetMessageResponse,
    ListMessagesResponse,
    ListReceiptsRequest,
    ListReceiptsResponse,
    Receipt,
)
from trunkline.v1.message_pb2 import ROLE_SYSTEM, ROLE_USER, Message
from trunkline.v1.presence_service_pb2 import Connection, ListConnectionsRequest, ListConnectionsResponse
from trunkline_edge.dialects.dialect import CallRefused, DialectRoute, HttpReply, HttpRequest
from trunkline_edge.dialects.maim.http_routes import routes
from trunkline_edge.dialects.tenant_policies import TenantPolicies

from tests.support.declared_tenants import policy

TENANTS = TenantPolicies([policy("demo", default_agent="echo")])
FLAT, DEEP, CONNECTIONS, RESULT, FLUSH = routes()

Answers = Iterable[ProtoMessage | Refused]


def served(
    route: DialectRoute, answers: Answers, parameters: dict[str, str], body: bytes = b"{}", **query: str
) -> tuple[HttpReply, list[ProtoMessage]]:
    """Run a route; returns its reply and the requests of its RPCs."""
    request = HttpRequest(parameters, list(query.items()), {}, body, TENANTS)
    handling, asked = route.handle(request), []
    waiting = iter(answers)
    try:
        call = next(handling)
        while True:
            # A copy, because handlers reuse the request for the next page.
            asked.append(type(call.request).FromString(call.request.SerializeToString()))
            answer = next(waiting)
            if isinstance(answer, Refused):
                entry = answer.entry
                call = handling.throw(CallRefused(entry.code, str(answer), entry.http_status))
            else:
                call = handling.send(answer)
    except CallRefused as refused:
        # As the edge does for a handler that does not handle it.
        assert route.render_refusal is not None
        return route.render_refusal(refused), asked
    except StopIteration as stop:
        assert next(waiting, None) is None
        return stop.value, asked


def test_a_broadcast_is_the_body_to_the_agents_platform() -> None:
    body = b'{"type": "chat", "message_segment": {"type": "text", "data": "hi"}}'
    answer = BroadcastResponse(message_id="m1", connections=2)
    for route, parameters in (
        (FLAT, {"tenant": "demo", "platform": "qq"}),
        (DEEP, {"tenant": "demo", "agent": "echo", "platform": "qq"}),
    ):
        reply, (request,) = served(route, [answer], parameters, body)
        assert isinstance(request, BroadcastRequest)
        assert (request.address.tenant, request.address.agent, request.address.platform) == (
            "demo",
            "echo",
            "qq",
        )
        assert request.address.WhichOneof("target") is None
        assert request.require_connection
        assert request.parts[0].text.text == "hi"
        assert (request.parts[1].custom.name, request.parts[1].custom.json) == (
            "maim.broadcast",
            body.decode(),
        )
        assert reply == HttpReply(
            200,
            {
                "success": True,
                "success_count": 2,
                "failed_count": 0,
                "total_connections": 2,
                "message_id": "m1@demo",
            },
        )


def test_a_broadcast_that_is_to_be_held_is_kept() -> None:
    answer = BroadcastResponse(message_id="m1")
    reply, (request,) = served(FLAT, [answer], {"tenant": "demo", "platform": "qq"}, hold="true")
    assert isinstance(request, BroadcastRequest)
    assert not request.require_connection
    assert reply.body == {
        "success": False,
        "error": "No active connections",
        "held": True,
        "message_id": "m1@demo",
    }


@pytest.mark.parametrize(
    "refused",
    [
        catalogue.UNKNOWN_TENANT.refused(tenant="demo"),
        catalogue.UNAUTHORIZED.refused(problem="a token must be given"),
        catalogue.ROUTER_UNAVAILABLE.refused(),
        catalogue.INVALID_ARGUMENT.refused(field="address.platform", problem="must not be so long"),
    ],
    ids=lambda refused: refused.entry.code,
)
def test_a_refused_broadcast_has_the_status_and_the_sentence(refused: Refused) -> None:
    reply, _ = served(FLAT, [refused], {"tenant": "demo", "platform": "qq"})
    assert reply == HttpReply(refused.entry.http_status, {"detail": str(refused)})


def test_connections_are_read_page_by_page() -> None:
    pages = [
        ListConnectionsResponse(connections=[Connection(connection_id="c1")], next_page_token="c1"),
        ListConnectionsResponse(connections=[Connection(connection_id="c2")]),
    ]
    reply, asked = served(CONNECTIONS, pages, {"tenant": "demo"})
    assert [each["uuid"] for each in reply.body["connections"]] == ["c1", "c2"]
    assert [each.page_token for each in asked if isinstance(each, ListConnectionsRequest)] == ["", "c1"]


def test_a_refused_question_has_the_status_and_the_sentence() -> None:
    refused = catalogue.ROUTER_UNAVAILABLE.refused()
    for route, parameters in ((CONNECTIONS, {"tenant": "demo"}), (RESULT, {"message_id": "m1@demo"})):
        reply, _ = served(route, [refused], parameters)
        assert reply == HttpReply(503, {"detail": str(refused)})


def said(role: int = ROLE_SYSTEM, seq: int = 5) -> GetMessageResponse:
    message = Message(id="m1", position=Position(epoch="e", seq=seq))
    message.address.tenant, message.address.agent, message.address.platform = "demo", "echo", "qq"
    message.author.role = role  # type: ignore[assignment]
    message.created_at.FromMilliseconds(1500)
    return GetMessageResponse(message=message)


def receipt(user: str, epoch: str, seq: int) -> Receipt:
    return Receipt(user=user, delivered=Position(epoch=epoch, seq=seq))


def test_a_message_has_a_result_once_somebody_was_given_it() -> None:
    pages = [
        ListReceiptsResponse(receipts=[receipt("a", "e", 4), receipt("b", "old", 9)], more=True),
        ListReceiptsResponse(receipts=[receipt("c", "e", 5)]),
    ]
    reply, asked = served(RESULT, [said(), *pages, ListMessagesResponse()], {"message_id": "m1@demo"})
    assert [each.after for each in asked if isinstance(each, ListReceiptsRequest)] == ["", "b"]
    assert reply == HttpReply(
        200,
        {
            "success": True,
            "message_id": "m1@demo",
            "error_code": None,
            "error_message": None,
            "retry_count": 0,
            "timestamp": 1.5,
        },
    )
    unknown = HttpReply(404, {"detail": "Message result not found"})
    assert served(RESULT, [said(seq=6), *pages], {"message_id": "m1@demo"})[0] == unknown


def test_the_last_report_of_a_failure_is_the_result() -> None:
    reports: list[Any] = [
        {"message_id": "other@demo", "success": False, "error_code": "no"},
        {"message_id": "m1@demo", "success": False, "error_code": "first"},
        {"message_id": "m1@demo", "success": False, "error_code": "last", "error_message": "muted"},
        {"message_id": "m1@demo2", "success": False, "error_code": "no"},
        ["no object"],
    ]
    page = ListMessagesResponse()
    for report in reports:
        custom = page.messages.add().parts.add().custom
        custom.name, custom.json = "maim.message_result", json.dumps(report)
    given = ListReceiptsResponse(receipts=[receipt("qq", "e", 5)])
    reply, _ = served(RESULT, [said(), given, page], {"message_id": "m1@demo"})
    assert reply.status == 200
    result = reply.body
    assert (result["success"], result["error_code"], result["error_message"]) == (False, "last", "muted")


def test_a_message_of_a_client_counts_as_delivered() -> None:
    reply, asked = served(RESULT, [said(ROLE_USER)], {"message_id": "m1@demo"})
    assert reply.body["success"]
    assert len(asked) == 1


def test_a_flush_answers_as_it_did_and_does_nothing() -> None:
    assert served(FLUSH, [], {"tenant": "demo"}) == (HttpReply(200, {"message": "Retry pool flushed"}), [])
