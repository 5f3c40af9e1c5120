"""The HTTP routes for visitors of pages that embed a bot. All but the widget reply in LangBot's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any
from uuid import uuid4

import msgspec
from trunkline.v1.address_pb2 import Address
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.message_pb2 import ROLE_SYSTEM

from trunkline_edge.dialects.codec import FrameRefused
from trunkline_edge.dialects.dialect import (
    Clock,
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
)
from trunkline_edge.dialects.langbot.chat_codec import json_fields
from trunkline_edge.dialects.langbot.records import BAD_SESSION_ID, BAD_SESSION_TYPE, NO_BOT, SESSION_TYPES
from trunkline_edge.dialects.langbot.rest_replies import failed, ok, render_refusal
from trunkline_edge.dialects.langbot.rest_routes import ConversationHandler, list_messages, reset_conversation
from trunkline_edge.dialects.langbot.visitors import (
    conversation_of_visitor,
    is_session_id,
    is_visitor,
    tenant_of_bot,
)
from trunkline_edge.dialects.paths import Path

#: Name of the custom part of a visitor's feedback, and the user whose topic it is logged in.
FEEDBACK = "langbot.feedback"

_BAD_FEEDBACK = "feedback_type must be 1 (like), 2 (dislike), or 3 (cancel)"
_MAX_ID_CHARACTERS = 128

_SCRIPT = "application/javascript; charset=utf-8"
_FOLDER = files("trunkline_edge.dialects.langbot.embed")
_WIDGET = (_FOLDER / "widget.js").read_bytes()
_LOGO = (_FOLDER / "logo.webp").read_bytes()


def embed_routes(clock: Clock) -> Sequence[DialectRoute]:
    """The routes."""
    return (
        _route("GET", "widget.js", _widget),
        DialectRoute("GET", Path("/api/v1/embed/logo"), _logo, render_refusal),
        _route("GET", "messages/{session_type}", _of_conversation(list_messages)),
        _route("POST", "reset/{session_type}", _of_conversation(reset_conversation)),
        _route("POST", "feedback", _feedback),
        _route("POST", "turnstile/verify", lambda request: _verify(request, clock)),
    )


def _route(method: str, path: str, handle: Callable[[HttpRequest], RouteSteps]) -> DialectRoute:
    below = Path(f"/api/v1/embed/{{bot}}/{path}")
    return DialectRoute(method, below, handle, render_refusal, tenant_of_bot, is_visitor)


def _of_conversation(handle: ConversationHandler) -> Callable[[HttpRequest], RouteSteps]:
    """Calls `handle` with the conversation that path and query name."""

    def handle_request(request: HttpRequest) -> RouteSteps:
        tenant = tenant_of_bot(request)
        if not tenant:
            return failed(404, NO_BOT)
        session_type = request.parameters["session_type"]
        if session_type not in SESSION_TYPES:
            return failed(400, BAD_SESSION_TYPE)
        session_id = request.parameter("session_id")
        if not is_session_id(session_id):
            return failed(400, BAD_SESSION_ID)
        address = conversation_of_visitor(tenant, request.parameters["bot"], session_type, session_id)
        return (yield from handle(address))

    return handle_request


def _feedback(request: HttpRequest) -> RouteSteps:
    """Log a visitor's opinion of a message, for backends: it names no session."""
    tenant = tenant_of_bot(request)
    if not tenant:
        return failed(404, NO_BOT)
    fields = _fields(request)
    kind = fields.get("feedback_type")
    if kind not in (1, 2, 3) or isinstance(kind, (bool, float)):
        return failed(400, _BAD_FEEDBACK)
    feedback = {
        "feedback_id": f"embed_{uuid4().hex[:12]}",
        "feedback_type": kind,
        "bot_uuid": request.parameters["bot"],
        "message_id": str(fields.get("message_id", ""))[:_MAX_ID_CHARACTERS],
    }
    logged = BroadcastRequest(address=Address(tenant=tenant, user=FEEDBACK))
    logged.author.role = ROLE_SYSTEM
    custom = logged.parts.add().custom
    custom.name, custom.json = FEEDBACK, msgspec.json.encode(feedback).decode()
    yield RouterCall("BroadcastService.Broadcast", logged)
    return ok({"feedback_id": feedback["feedback_id"]})


def _verify(request: HttpRequest, clock: Clock) -> RouteSteps:
    """Answer like LangBot without a Turnstile key: any token is accepted, and the result means nothing."""
    if not tenant_of_bot(request):
        return failed(404, NO_BOT)
    if not _fields(request).get("token"):
        return failed(400, "Token is required")
    return ok({"token": f"{clock().timestamp()}.dummy"})
    yield


def _fields(request: HttpRequest) -> dict[str, Any]:
    """The JSON object in the body; empty for anything else."""
    try:
        return json_fields(request.body)
    except FrameRefused:
        return {}


def _widget(request: HttpRequest) -> RouteSteps:
    if not tenant_of_bot(request):
        return HttpReply(404, f"// {NO_BOT}", _SCRIPT)
    return HttpReply(200, _WIDGET, _SCRIPT, {"cache-control": "public, max-age=300"})
    yield


def _logo(request: HttpRequest) -> RouteSteps:
    return HttpReply(200, _LOGO, "image/webp", {"cache-control": "public, max-age=86400"})
    yield
