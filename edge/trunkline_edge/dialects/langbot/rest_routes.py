"""The HTTP routes of LangBot's WebSocket chat. All reply with `{code, msg, data}`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.catalogue import Refused
from trunkline.v1.history_service_pb2 import (
    ListMessagesRequest,
    ListMessagesResponse,
    ResetConversationRequest,
)
from trunkline.v1.message_pb2 import ROLE_SYSTEM, Message
from trunkline.v1.presence_service_pb2 import Connection, ListConnectionsRequest, ListConnectionsResponse

from trunkline_edge.dialects.codec import FrameRefused
from trunkline_edge.dialects.dialect import (
    CallRefused,
    Clock,
    DialectRoute,
    HttpRequest,
    RouterCall,
    RouteSteps,
)
from trunkline_edge.dialects.langbot.chat_codec import BROADCAST, json_fields
from trunkline_edge.dialects.langbot.pipeline_owner import WORKSPACE_HEADER, tenant_of, tenant_of_request
from trunkline_edge.dialects.langbot.records import (
    BAD_SESSION_TYPE,
    CONVERSATION_ID,
    PLATFORM,
    SESSION_TYPES,
    conversation,
    iso,
    record_of,
    session_type_of,
)
from trunkline_edge.dialects.langbot.rest_replies import failed, ok, render_refusal, render_refused
from trunkline_edge.dialects.paths import Path

#: Bounds of a list of the newest messages, which ends at the first bound reached.
MAX_LISTED = 500
MAX_LISTED_BYTES = 16 << 20


_PAGE = 500
_CONNECTIONS_PAGE = 1000

_Handler = Callable[[HttpRequest, Address], RouteSteps]

#: Handles a request for one conversation.
ConversationHandler = Callable[[Address], RouteSteps]


def routes(clock: Clock) -> Sequence[DialectRoute]:
    """The routes."""
    return (
        _route("GET", "messages/{session_type}", _of_session(list_messages)),
        _route("POST", "reset/{session_type}", _of_session(reset_conversation)),
        _route("GET", "connections", lambda _, here: _connections(here, clock)),
        _route("POST", "broadcast", _broadcast),
    )


def _route(method: str, path: str, handle: _Handler) -> DialectRoute:
    below = Path(f"/api/v1/pipelines/{{pipeline}}/ws/{path}")
    return DialectRoute(method, below, with_tenant(handle), render_refusal, tenant_of_request)


def with_tenant(handle: _Handler) -> Callable[[HttpRequest], RouteSteps]:
    """Calls `handle` with the address of the pipeline, and renders refusals in LangBot's form."""

    def handle_request(request: HttpRequest) -> RouteSteps:
        try:
            pipeline = request.parameters["pipeline"]
            workspace = request.headers.get(WORKSPACE_HEADER, "")
            tenant = tenant_of(request.tenants, pipeline, request.key, workspace)
            return (yield from handle(request, Address(tenant=tenant, agent=pipeline, platform=PLATFORM)))
        except Refused as refused:
            return render_refused(refused)
        except CallRefused as refused:
            if refused.http_status == 401 and request.tenants.is_open(tenant, request.is_local):
                # LangBot's web client logs its user out on 401. The tenant needs no token, but the call does.
                return failed(403, str(refused))
            raise

    return handle_request


def _of_session(handle: ConversationHandler) -> _Handler:
    """Calls `handle` with the conversation that the path names."""

    def handle_request(request: HttpRequest, here: Address) -> RouteSteps:
        session_type = request.parameters["session_type"]
        if session_type not in SESSION_TYPES:
            return failed(400, BAD_SESSION_TYPE)
        address = Address()
        address.CopyFrom(here)
        address.conversation.CopyFrom(conversation(session_type))
        return (yield from handle(address))

    return handle_request


def list_messages(address: Address) -> RouteSteps:
    """Reply with the records of a conversation's newest messages."""
    newest = yield from _newest_messages(address)
    records = [record for message in newest if (record := record_of(message)) is not None]
    return ok({"messages": records})


def _newest_messages(address: Address) -> Generator[RouterCall, Any, list[Message]]:
    """The newest messages of a conversation, oldest first."""
    messages: list[Message] = []
    size = 0
    request = ListMessagesRequest(address=address, limit=_PAGE)
    while True:
        page: ListMessagesResponse = yield RouterCall("HistoryService.ListMessages", request)
        messages[:0] = page.messages
        size += page.ByteSize()
        if not page.more or not page.messages or len(messages) >= MAX_LISTED or size >= MAX_LISTED_BYTES:
            return messages[-MAX_LISTED:]
        request.limit = MAX_LISTED - len(messages)
        request.before.CopyFrom(messages[0].position)


def reset_conversation(address: Address) -> RouteSteps:
    """Erase the log of a conversation."""
    yield RouterCall("HistoryService.ResetConversation", ResetConversationRequest(address=address))
    return ok({"message": "Session reset successfully"})


def _connections(here: Address, clock: Clock) -> RouteSteps:
    """Counts of the whole tenant, and a list of the pipeline's connections."""
    by_pipeline: Counter[str] = Counter()
    by_session_type: Counter[str] = Counter(dict.fromkeys(SESSION_TYPES, 0))
    listed: list[Connection] = []
    request = ListConnectionsRequest(address=Address(tenant=here.tenant), page_size=_CONNECTIONS_PAGE)
    while True:
        page: ListConnectionsResponse = yield RouterCall("PresenceService.ListConnections", request)
        for connection in page.connections:
            address = connection.address
            if address.platform == PLATFORM and address.conversation.id == CONVERSATION_ID:
                by_pipeline[address.agent] += 1
                by_session_type[session_type_of(address.conversation)] += 1
                if address.agent == here.agent:
                    listed.append(connection)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    now = iso(clock())
    return ok(
        {
            "stats": {
                "total_connections": by_pipeline.total(),
                "pipelines": len(by_pipeline),
                "connections_by_pipeline": by_pipeline,
                "connections_by_session_type": by_session_type,
            },
            "connections": [_listed(connection, now) for connection in listed],
        }
    )


def _listed(connection: Connection, now: str) -> dict[str, Any]:
    """A listed connection answers pings, so it is active now."""
    return {
        "connection_id": connection.connection_id,
        "session_type": session_type_of(connection.address.conversation),
        "created_at": iso(connection.connected_at),
        "last_active": now,
        "is_active": True,
    }


def _broadcast(request: HttpRequest, here: Address) -> RouteSteps:
    try:
        content = json_fields(request.body).get("message")
    except FrameRefused as refused:
        if refused.values:
            return failed(400, str(refused))
        content = None
    if not content:
        return failed(400, "message is required")
    broadcast = BroadcastRequest(address=here, ephemeral=True)
    broadcast.author.role = ROLE_SYSTEM
    custom = broadcast.parts.add().custom
    custom.name, custom.json = BROADCAST, msgspec.json.encode(content).decode()
    yield RouterCall("BroadcastService.Broadcast", broadcast)
    return ok({"message": "Broadcast sent successfully"})
