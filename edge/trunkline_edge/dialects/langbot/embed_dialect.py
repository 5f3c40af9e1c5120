"""LangBot's chat for visitors of other sites' pages, see docs/dialects/langbot.md.

A bot is an agent, the platform is `web_page`, and each `session_id` has conversations of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened

from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec
from trunkline_edge.dialects.langbot.embed_routes import embed_routes
from trunkline_edge.dialects.langbot.records import BAD_SESSION_ID, BAD_SESSION_TYPE, NO_BOT, SESSION_TYPES
from trunkline_edge.dialects.langbot.rest_replies import render_refusal
from trunkline_edge.dialects.langbot.visitors import NAME, bot_of, conversation_of_visitor, is_session_id
from trunkline_edge.dialects.paths import Path


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    codecs = {name: LangBotCodec(name, clock, agent_field="bot_uuid") for name in SESSION_TYPES}
    return Dialect(
        name=NAME,
        needs_tenants=True,
        connect=partial(connect, codecs),
        rejection_codec=codecs["person"],
        websocket_paths=(Path("/api/v1/embed/{bot}/ws/connect"),),
        routes=embed_routes(clock),
        render_refusal=render_refusal,
    )


def connect(codecs: Mapping[str, LangBotCodec], request: ConnectRequest) -> ConnectPlan:
    """Plan a connection, see Dialect. The `authenticate` frame that visitors send first is ignored."""
    bot = request.parameters["bot"]
    found = bot_of(request.tenants, bot, request.is_local)
    if not found.tenant:
        raise catalogue.INVALID_ADDRESS.refused(problem=NO_BOT)
    session_type = request.parameter("session_type") or "person"
    if session_type not in SESSION_TYPES:
        raise catalogue.INVALID_ADDRESS.refused(problem=BAD_SESSION_TYPE)
    session_id = request.parameter("session_id")
    if not is_session_id(session_id):
        raise catalogue.INVALID_ADDRESS.refused(problem=BAD_SESSION_ID)
    codec = codecs[session_type]
    opened = ConnectionOpened(protocol=codec.name, echo=True, user=session_id)
    opened.address.CopyFrom(conversation_of_visitor(found.tenant, bot, session_type, session_id))
    return ConnectPlan(codec, opened, names_user=False, large_frames=True, is_visitor=found.is_public)
