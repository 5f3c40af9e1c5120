"""LangBot's WebSocket chat and the HTTP routes beside it, see docs/dialects/langbot.md.

A pipeline is an agent, the platform is `langbot`. All connections of one pipeline and session type share a
conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened

from trunkline_edge.dialects.codec import FrameRefused
from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.langbot.chat_codec import LangBotCodec, json_fields
from trunkline_edge.dialects.langbot.file_routes import file_routes
from trunkline_edge.dialects.langbot.pipeline_owner import NAME, tenant_of
from trunkline_edge.dialects.langbot.records import BAD_SESSION_TYPE, PLATFORM, SESSION_TYPES, conversation
from trunkline_edge.dialects.langbot.rest_replies import PREFIXES, render_refusal
from trunkline_edge.dialects.langbot.rest_routes import routes
from trunkline_edge.dialects.paths import Path
from trunkline_edge.dialects.tenant_policies import TenantPolicies


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    codecs = {name: LangBotCodec(name, clock) for name in SESSION_TYPES}
    return Dialect(
        name=NAME,
        needs_tenants=True,
        connect=partial(connect, codecs),
        rejection_codec=codecs["person"],
        websocket_paths=(Path("/api/v1/pipelines/{pipeline}/ws/connect"),),
        routes=(*routes(clock), *file_routes()),
        http_prefixes=PREFIXES,
        render_refusal=render_refusal,
    )


def connect(codecs: Mapping[str, LangBotCodec], request: ConnectRequest) -> ConnectPlan:
    """Plan a connection, see Dialect; `codecs` by session type.

    A client whose tenant requires a token that the request lacks must send it in the first frame.
    """
    session_type = dict(reversed(request.query)).get("session_type", "person")
    if session_type not in SESSION_TYPES:
        raise catalogue.INVALID_ADDRESS.refused(problem=BAD_SESSION_TYPE)
    pipeline, tenants = request.parameters["pipeline"], request.tenants
    codec = codecs[session_type]
    opened = ConnectionOpened(protocol=codec.name, echo=True)
    opened.address.agent, opened.address.platform = pipeline, PLATFORM
    opened.address.conversation.CopyFrom(conversation(session_type))
    plan = ConnectPlan(codec, opened, may_be_foreign=True, large_frames=True)
    token = request.token or request.headers.get("x-api-key", "")
    try:
        tenant = tenant_of(tenants, pipeline, token)
    except Refused as refused:
        # The token of another tenant stays wrong whatever frame follows.
        if refused.entry is not catalogue.UNAUTHORIZED or tenants.tenant_of_token(token):
            raise
        tenant = ""
    if tenant and (tenants.may_accept(tenant, token) or not request.needs_token(tenant)):
        return _complete(plan, tenant, token)
    plan.read_first = partial(_read_authenticate, plan, tenants)
    return plan


def _complete(plan: ConnectPlan, tenant: str, token: str) -> ConnectPlan:
    plan.opened.address.tenant = tenant
    plan.token = token
    plan.read_first = None
    return plan


def _read_authenticate(
    plan: ConnectPlan, tenants: TenantPolicies, payload: bytes, binary: bool
) -> ConnectPlan:
    """Read the `authenticate` frame, which must come first."""
    try:
        fields = json_fields(payload)
    except FrameRefused:
        fields = {}
    token = fields.get("token")
    if fields.get("type") != "authenticate" or not isinstance(token, str):
        raise catalogue.UNAUTHORIZED.refused(
            problem="the first frame must be an authenticate frame with a token"
        )
    workspace = fields.get("workspace_uuid")
    if not isinstance(workspace, str):
        workspace = ""
    return _complete(plan, tenant_of(tenants, plan.opened.address.agent, token, workspace), token)
