"""OpenAI's chat completions and models: `/openai/{tenant}/v1`, see docs/dialects/openai.md.

A model is an agent, the platform is `openai`. A call's conversation is one of its user's chats.
"""

from __future__ import annotations

import re
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened, TenantPolicy
from trunkline.v1.frame_pb2 import CancelFrame, ClientFrame, ServerFrame
from trunkline.v1.message_pb2 import MessageState
from trunkline.v1.tenant_pb2 import AgentMedia

from trunkline_edge.dialects.dialect import (
    CallRefused,
    Clock,
    ConnectPlan,
    Dialect,
    ExchangeRoute,
    HttpReply,
    HttpRequest,
    bearer,
    exchanges_only,
)
from trunkline_edge.dialects.exchange import Exchange
from trunkline_edge.dialects.native.handshake import DEFAULT
from trunkline_edge.dialects.openai.background_task import HEADER, is_background_task
from trunkline_edge.dialects.openai.callers import CONVERSATION, Calls, claimed_agents, read_conversation
from trunkline_edge.dialects.openai.chat_exchange import NAME, ChatExchange, EmptyExchange
from trunkline_edge.dialects.openai.chat_request import ChatRequest, read_model, read_request
from trunkline_edge.dialects.openai.completion import message_id_of
from trunkline_edge.dialects.openai.content import refuse_unaccepted
from trunkline_edge.dialects.openai.errors import invalid, render
from trunkline_edge.dialects.paths import Path

PLATFORM = "openai"
BASE = "/openai/{tenant}/v1"

_AGENT = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")


class ModelsExchange(Exchange):
    """Lists the agents that the caller may use, or describes one of them."""

    name = NAME

    def __init__(self, agents: list[str], model: str | None) -> None:
        super().__init__()
        self._agents = agents
        self._model = model

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        if not frame.HasField("connected"):
            return b""
        if self._model is None:
            self.answer = HttpReply(200, {"object": "list", "data": [_model(name) for name in self._agents]})
        elif self._model in self._agents:
            self.answer = HttpReply(200, _model(self._model))
        else:
            self.refused = catalogue.UNKNOWN_AGENT.refused(agent=self._model[:128])
        return b""


class CancelExchange(Exchange):
    """Cancels one reply."""

    name = NAME

    def __init__(self, completion: str) -> None:
        super().__init__()
        self._completion = completion
        frame = CancelFrame(id="cancel", message_id=message_id_of(completion))
        self.requests.append(ClientFrame(cancel=frame))

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        if frame.HasField("cancelled"):
            states = [MessageState.Name(each.state) for each in frame.cancelled.replies]
            status = states[0].removeprefix("MESSAGE_STATE_").lower() if states else "unknown"
            body = {"id": self._completion, "object": "chat.completion.cancelled", "status": status}
            self.answer = HttpReply(200, body)
        return b""


def _model(agent: str) -> dict[str, object]:
    """A model, as its clients know it. Trunkline does not know since when the agent exists."""
    return {"id": agent, "object": "model", "created": 0, "owned_by": "trunkline"}


# Plans


def _complete(calls: Calls, clock: Clock, request: HttpRequest) -> ConnectPlan:
    asked = read_request(request.body)
    call = calls.read(request, asked)
    policy = request.tenants.policy(request.parameters["tenant"])
    settings = policy.settings if policy is not None else None
    task = request.headers.get(HEADER, "")
    exchange: Exchange
    if settings is not None and settings.exclude_background_tasks and is_background_task(asked, task):
        exchange = EmptyExchange(asked, call, clock)
    else:
        exchange = ChatExchange(asked, call, clock, _objection(policy, asked))
    # The caller is verified before it hears that there is no such agent.
    agent = asked.model if _AGENT.fullmatch(asked.model) else PLATFORM
    return _plan(request, exchange, agent, call.user, call.chat)


def _objection(policy: TenantPolicy | None, asked: ChatRequest) -> Refused | None:
    """The reason why the agent cannot answer; None if it can, as far as the edge knows."""
    if policy is None:
        return None
    if asked.model not in policy.agents:
        return catalogue.UNKNOWN_AGENT.refused(agent=asked.model[:128])
    try:
        refuse_unaccepted(asked.path, asked.parts, _accepted(policy, asked.model), asked.model)
    except Refused as reason:
        return reason
    return None


def _accepted(policy: TenantPolicy, agent: str) -> AgentMedia.ValueType:
    settings = policy.settings
    if agent in settings.agents and settings.agents[agent].accepts:
        return settings.agents[agent].accepts
    return settings.agent_defaults.accepts


def _models(request: HttpRequest) -> ConnectPlan:
    """The list needs a connection only because that verifies the caller: to one of the agents on it."""
    policy = request.tenants.policy(request.parameters["tenant"])
    allowed = claimed_agents(bearer(request.headers))
    known = list(policy.agents) if policy is not None else []
    agents = known if allowed is None else [agent for agent in known if agent in allowed]
    agent = next(iter(agents or allowed or ()), PLATFORM)
    return _plan(request, ModelsExchange(agents, request.parameters.get("model")), agent)


def _cancel(request: HttpRequest) -> ConnectPlan:
    user, chat = read_conversation(request.headers)
    if not chat:
        raise invalid(CONVERSATION, "must name the conversation, as the response did")
    return _plan(
        request, CancelExchange(request.parameters["completion"]), read_model(request.body), user, chat
    )


def _plan(
    request: HttpRequest, exchange: Exchange, agent: str, user: str = "", chat: str = ""
) -> ConnectPlan:
    opened = ConnectionOpened(user=user, protocol=NAME)
    opened.address.tenant = request.parameters["tenant"]
    opened.address.agent = agent
    opened.address.platform = PLATFORM
    return ConnectPlan(
        exchange,
        opened,
        bearer(request.headers),
        names_user=False,
        # SDKs need a key, whatever it is.
        may_be_foreign=True,
        large_frames=True,
        chat=chat,
    )


def _render_refusal(refused: CallRefused) -> HttpReply:
    entry = catalogue.ENTRIES.get(refused.code)
    retryable = entry is not None and entry.retryable
    field = str(refused).partition(":")[0] if entry is catalogue.INVALID_ARGUMENT else ""
    error = render(refused.code, str(refused), refused.http_status, param=field, retryable=retryable)
    return HttpReply(error.status, error.body, headers=error.headers)


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    complete = partial(_complete, Calls(clock), clock)
    return Dialect(
        name=NAME,
        needs_tenants=True,
        connect=exchanges_only,
        rejection_codec=DEFAULT,
        http_prefixes=("/openai/",),
        render_refusal=_render_refusal,
        exchanges=(
            ExchangeRoute(
                "POST", Path(f"{BASE}/chat/completions"), complete, _render_refusal, large_body=True
            ),
            ExchangeRoute(
                "POST", Path(f"{BASE}/chat/completions/{{completion}}/cancel"), _cancel, _render_refusal
            ),
            ExchangeRoute("GET", Path(f"{BASE}/models"), _models, _render_refusal),
            ExchangeRoute("GET", Path(f"{BASE}/models/{{model}}"), _models, _render_refusal),
        ),
    )
