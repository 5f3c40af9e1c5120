"""The HTTP routes of maim_message's tenant server, see docs/dialects/maim.md."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.history_service_pb2 import GetMessageRequest, ListMessagesRequest, ListReceiptsRequest
from trunkline.v1.message_pb2 import ROLE_USER, Message
from trunkline.v1.presence_service_pb2 import Connection, ListConnectionsRequest

from trunkline_edge.dialects.dialect import (
    CallRefused,
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
)
from trunkline_edge.dialects.json_text import replace_lone_surrogates
from trunkline_edge.dialects.maim.messages import (
    BROADCAST,
    RESULT,
    NotAnObject,
    TooManyValues,
    conversation_of,
    objects_in,
    parts_of,
    public_id,
    read_object,
    seconds,
    string_of,
)
from trunkline_edge.dialects.paths import Path

#: Prefixes of the paths of these routes, and of others that the server had.
PREFIXES = ("/api/v1/tenants/", "/api/v1/message/")

#: A step of a handler: yields RPCs, and returns a result.
Step = Generator[RouterCall, Any, Any]

_PAGE = 1000
#: Number of the latest messages to search for a client's report.
_SEARCHED = 50

_NOT_FOUND = frozenset(
    {catalogue.MESSAGE_NOT_FOUND.code, catalogue.UNKNOWN_TENANT.code, catalogue.INVALID_ARGUMENT.code}
)


def routes() -> tuple[DialectRoute, ...]:
    """The routes."""
    tenant = "/api/v1/tenants/{tenant}"
    return (
        DialectRoute("POST", Path(f"{tenant}/platforms/{{platform}}/broadcast"), broadcast, render_refusal),
        DialectRoute(
            "POST",
            Path(f"{tenant}/agents/{{agent}}/platforms/{{platform}}/broadcast"),
            broadcast,
            render_refusal,
        ),
        DialectRoute("GET", Path(f"{tenant}/connections"), connections, render_refusal),
        DialectRoute(
            "GET", Path("/api/v1/message/{message_id}/result"), result, render_refusal, _tenant_of_message
        ),
        DialectRoute("POST", Path(f"{tenant}/retry-pool/flush"), flush, render_refusal),
    )


def _tenant_of_message(request: HttpRequest) -> str:
    return request.parameters["message_id"].rpartition("@")[2]


# Broadcast


def broadcast(request: HttpRequest) -> RouteSteps:
    """Broadcast a JSON object to all connections of an agent on a platform.

    Without connections it is not stored, unless the query has `hold=true`.
    """
    tenant, platform = request.parameters["tenant"], request.parameters["platform"]
    named = request.parameters.get("agent", "")
    agent = named or request.tenants.default_agent(tenant)
    if not agent:
        problem = f"The path names no agent and the tenant has no default; set [tenants.{tenant}] agent"
        return HttpReply(400, {"detail": problem})
    body = replace_lone_surrogates(request.body)
    try:
        fields = read_object(body)
    except TooManyValues as problem:
        return _unprocessable("too_long", f"JSON {problem}")
    except NotAnObject:
        return _unprocessable("dict_type", "Input should be a valid dictionary")
    except ValueError:
        return _unprocessable("json_invalid", "JSON decode error")
    nobody = "No active connections" + (f" for agent {agent} on platform {platform}" if named else "")
    broadcast_request = BroadcastRequest(
        address=Address(tenant=tenant, agent=agent, platform=platform),
        parts=parts_of(BROADCAST, body, fields),
        require_connection=("hold", "true") not in request.query,
    )
    try:
        response = yield RouterCall("BroadcastService.Broadcast", broadcast_request)
    except CallRefused as refused:
        if refused.code == catalogue.NO_ACTIVE_CONNECTION.code:
            return HttpReply(200, {"success": False, "error": nobody})
        raise
    message_id = public_id(response.message_id, tenant)
    if not response.connections:
        return HttpReply(200, {"success": False, "error": nobody, "held": True, "message_id": message_id})
    return HttpReply(200, _reached(response.connections, message_id))


def _reached(connections: int, message_id: str) -> dict[str, Any]:
    return {
        "success": True,
        "success_count": connections,
        # Disconnected clients are not counted; one that disconnects now gets it when it reconnects.
        "failed_count": 0,
        "total_connections": connections,
        "message_id": message_id,
    }


# Queries


def connections(request: HttpRequest) -> RouteSteps:
    """List all connections of a tenant; none if the tenant does not exist."""
    tenant = request.parameters["tenant"]
    query = ListConnectionsRequest(address=Address(tenant=tenant), page_size=_PAGE)
    listed: list[dict[str, Any]] = []
    while True:
        try:
            page = yield RouterCall("PresenceService.ListConnections", query)
        except CallRefused as refused:
            if refused.code == catalogue.UNKNOWN_TENANT.code:
                return HttpReply(200, {"connections": []})
            raise
        listed += [_connection(connection) for connection in page.connections]
        query.page_token = page.next_page_token
        if not page.next_page_token:
            return HttpReply(200, {"connections": listed})


def _connection(connection: Connection) -> dict[str, Any]:
    connected_at = seconds(connection.connected_at)
    return {
        "uuid": connection.connection_id,
        "tenant_id": connection.address.tenant,
        "agent_id": connection.address.agent,
        "platform": connection.address.platform,
        "created_at": connected_at,
        "last_active": connected_at,
        "connection_pool": None,
        "metadata": {},
        "is_connected": True,
    }


def result(request: HttpRequest) -> RouteSteps:
    """The result of a message: accepted if a client sent it, else delivered, or reported as failed."""
    public = request.parameters["message_id"]
    message_id, _, tenant = public.rpartition("@")
    if not message_id:
        return _no_result()
    try:
        response = yield RouterCall(
            "HistoryService.GetMessage", GetMessageRequest(tenant=tenant, message_id=message_id)
        )
        message: Message = response.message
        if not (yield from _is_delivered(message)):
            return _no_result()
        report = (yield from _report(message, public)) or {}
    except CallRefused as refused:
        if refused.code in _NOT_FOUND:
            return _no_result()
        raise
    return HttpReply(
        200,
        {
            "success": not report,
            "message_id": public,
            "error_code": string_of(report, "error_code") or None,
            "error_message": string_of(report, "error_message") or None,
            "retry_count": 0,
            "timestamp": seconds(message.created_at),
        },
    )


def _is_delivered(message: Message) -> Step:
    """Whether a client received the message; a message of a client has arrived."""
    if message.author.role == ROLE_USER:
        return True
    query = ListReceiptsRequest(address=message.address, page_size=_PAGE)
    while True:
        page = yield RouterCall("HistoryService.ListReceipts", query)
        for receipt in page.receipts:
            delivered = receipt.delivered
            if delivered.epoch == message.position.epoch and delivered.seq >= message.position.seq:
                return True
        if not page.more:
            return False
        query.after = page.receipts[-1].user


def _report(message: Message, public: str) -> Step:
    """The latest report of a client that it could not handle a message, if recent; None otherwise."""
    address = message.address
    if message.author.role == ROLE_USER or not address.platform:
        return None
    conversation = Address(tenant=address.tenant, agent=address.agent, platform=address.platform)
    conversation.conversation.CopyFrom(conversation_of(address.platform))
    page = yield RouterCall(
        "HistoryService.ListMessages", ListMessagesRequest(address=conversation, limit=_SEARCHED)
    )
    for reported in reversed(page.messages):
        for _, fields in objects_in(reported, RESULT):
            if string_of(fields, "message_id") == public:
                return fields
    return None


def flush(request: HttpRequest) -> RouteSteps:
    """Do nothing: there is no retry pool, because the log redelivers on reconnect."""
    return HttpReply(200, {"message": "Retry pool flushed"})
    yield


def _no_result() -> HttpReply:
    return HttpReply(404, {"detail": "Message result not found"})


def render_refusal(refused: CallRefused) -> HttpReply:
    return HttpReply(refused.http_status, {"detail": str(refused)})


def _unprocessable(kind: str, text: str) -> HttpReply:
    return HttpReply(422, {"detail": [{"type": kind, "loc": ["body"], "msg": text}]})
