"""The HTTP routes beside LangBot's WebSocket chat. All answer `{code, msg, data}`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec
from trunkline.v1 import catalogue
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
    Handling,
    HttpReply,
    HttpRequest,
    Route,
    RouterCall,
    bearer,
)
from trunkline_edge.dialects.langbot.chat_codec import BROADCAST, json_fields
from trunkline_edge.dialects.langbot.pipeline_owner import tenant_of
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
from trunkline_edge.dialects.paths import Path

#: The newest messages that are listed: so many, or fewer once they have more bytes than this.
MAX_LISTED = 500
MAX_LISTED_BYTES = 16 << 20

_PAGE = 500
_CONNECTIONS_PAGE = 1000

_Handle = Callable[[HttpRequest, Address], Handling]


def routes(clock: Clock) -> Sequence[Route]:
    """All of them."""
    base = "/api/v1/pipelines/{pipeline}/ws"
    return (
        Route("GET", Path(f"{base}/messages/{{session_type}}"), _guarded(_messages)),
        Route("POST", Path(f"{base}/reset/{{session_type}}"), _guarded(_reset), _said),
        Route("GET", Path(f"{base}/connections"), _guarded(lambda _, here: _connections(here, clock))),
        Route("POST", Path(f"{base}/broadcast"), _guarded(_broadcast), _said),
    )


def _guarded(handle: _Handle) -> Callable[[HttpRequest], Handling]:
    """For those who may, with the address of the pipeline; what is refused is said as LangBot says it."""

    def guarded(request: HttpRequest) -> Handling:
        try:
            token = bearer(request.headers) or request.headers.get("x-api-key", "")
            pipeline = request.parameters["pipeline"]
            tenant = tenant_of(request.tenants, pipeline, token)
            return (yield from handle(request, Address(tenant=tenant, agent=pipeline, platform=PLATFORM)))
        except Refused as refused:
            return _refused(refused.entry.code, str(refused), refused.entry.http_status)
        except CallRefused as refused:
            return _said(refused)

    return guarded


def _said(refused: CallRefused) -> HttpReply:
    return _refused(refused.code, str(refused), refused.http_status)


def _refused(code: str, text: str, status: int) -> HttpReply:
    if code == catalogue.UNAUTHORIZED.code:
        return _failed(401, "No valid user token provided")
    if code == catalogue.UNKNOWN_TENANT.code:
        return _failed(404, "Pipeline not found")
    return _failed(status, f"Internal server error: {text}" if status == 500 else text)


def _ok(content: Any) -> HttpReply:
    return HttpReply(200, {"code": 0, "msg": "ok", "data": content})


def _failed(status: int, text: str) -> HttpReply:
    return HttpReply(status, {"code": -1, "msg": text})


def _session(request: HttpRequest, here: Address) -> Address | None:
    """The conversation that the path names; None where it names none."""
    session_type = request.parameters["session_type"]
    if session_type not in SESSION_TYPES:
        return None
    address = Address()
    address.CopyFrom(here)
    address.conversation.CopyFrom(conversation(session_type))
    return address


def _messages(request: HttpRequest, here: Address) -> Handling:
    address = _session(request, here)
    if address is None:
        return _failed(400, BAD_SESSION_TYPE)
    newest = yield from _newest(address)
    records = [record for message in newest if (record := record_of(message)) is not None]
    return _ok({"messages": records})


def _newest(address: Address) -> Generator[RouterCall, Any, list[Message]]:
    """The newest messages of a conversation, oldest first."""
    found: list[Message] = []
    size = 0
    asked = ListMessagesRequest(address=address, limit=_PAGE)
    while True:
        page: ListMessagesResponse = yield RouterCall("HistoryService.ListMessages", asked)
        found[:0] = page.messages
        size += page.ByteSize()
        if not page.more or not page.messages or len(found) >= MAX_LISTED or size >= MAX_LISTED_BYTES:
            return found[-MAX_LISTED:]
        asked.limit = MAX_LISTED - len(found)
        asked.before.CopyFrom(found[0].position)


def _reset(request: HttpRequest, here: Address) -> Handling:
    address = _session(request, here)
    if address is None:
        return _failed(400, BAD_SESSION_TYPE)
    yield RouterCall("HistoryService.ResetConversation", ResetConversationRequest(address=address))
    return _ok({"message": "Session reset successfully"})


def _connections(here: Address, clock: Clock) -> Handling:
    """Counts are those of the tenant; the connections are the pipeline's."""
    by_pipeline: Counter[str] = Counter()
    by_session_type: Counter[str] = Counter(dict.fromkeys(SESSION_TYPES, 0))
    listed: list[Connection] = []
    asked = ListConnectionsRequest(address=Address(tenant=here.tenant), page_size=_CONNECTIONS_PAGE)
    while True:
        page: ListConnectionsResponse = yield RouterCall("PresenceService.ListConnections", asked)
        for connection in page.connections:
            address = connection.address
            if address.platform == PLATFORM and address.conversation.id == CONVERSATION_ID:
                by_pipeline[address.agent] += 1
                by_session_type[session_type_of(address.conversation)] += 1
                if address.agent == here.agent:
                    listed.append(connection)
        if not page.next_page_token:
            break
        asked.page_token = page.next_page_token
    now = iso(clock())
    return _ok(
        {
            "stats": {
                "total_connections": by_pipeline.total(),
                "pipelines": len(by_pipeline),
                "connections_by_pipeline": by_pipeline,
                "connections_by_session_type": by_session_type,
            },
            "connections": [_shown(connection, now) for connection in listed],
        }
    )


def _shown(connection: Connection, now: str) -> dict[str, Any]:
    """A connection that is listed answers pings: it is active now."""
    return {
        "connection_id": connection.connection_id,
        "session_type": session_type_of(connection.address.conversation),
        "created_at": iso(connection.connected_at),
        "last_active": now,
        "is_active": True,
    }


def _broadcast(request: HttpRequest, here: Address) -> Handling:
    try:
        told = json_fields(request.body).get("message")
    except FrameRefused:
        told = None
    if not told:
        return _failed(400, "message is required")
    asked = BroadcastRequest(address=here, ephemeral=True)
    asked.author.role = ROLE_SYSTEM
    custom = asked.parts.add().custom
    custom.name, custom.json = BROADCAST, msgspec.json.encode(told).decode()
    yield RouterCall("BroadcastService.Broadcast", asked)
    return _ok({"message": "Broadcast sent successfully"})
