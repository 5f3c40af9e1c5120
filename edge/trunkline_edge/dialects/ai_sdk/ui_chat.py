"""The Vercel AI SDK's chat over HTTP: `/ai/{tenant}/{agent}/chat`, see docs/dialects/ai_sdk.md.

A chat is a conversation of its user with the agent on the platform `ai_sdk`.
"""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import CancelFrame, ClientFrame, HistoryFrame, ServerFrame
from trunkline.v1.message_pb2 import MESSAGE_STATE_OPEN, ROLE_AGENT, ROLE_USER

from trunkline_edge.dialects.ai_sdk.ui_messages import read_request, ui_messages
from trunkline_edge.dialects.ai_sdk.ui_stream import RegeneratedStream, ResumedStream, UiMessageStream
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
from trunkline_edge.dialects.paths import Path

NAME = "ai_sdk"
PLATFORM = "ai_sdk"
BASE = "/ai/{tenant}/{agent}/chat"
MAX_CHAT_CHARACTERS = 64
#: Newest messages of the log that a page loads, and in which a stop looks for what to stop.
PAGE_MESSAGES, STOPPED_MESSAGES = 200, 20


class ChatPage(Exchange):
    """Answers with the chat's newest messages."""

    name = NAME

    def __init__(self, chat: str) -> None:
        super().__init__()
        self._chat = chat
        self.requests.append(ClientFrame(history=HistoryFrame(id="page", limit=PAGE_MESSAGES)))

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        if frame.HasField("history"):
            self.answer = HttpReply(200, {"id": self._chat, "messages": ui_messages(frame.history.messages)})
        return b""


class Stop(Exchange):
    """Cancels the replies that are being written, or the one to the last message before it exists."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.requests.append(ClientFrame(history=HistoryFrame(id="stop", limit=STOPPED_MESSAGES)))
        self._waiting = 0
        self._cancelled: list[str] = []

    def received(self, frame: ServerFrame) -> bytes:
        """See Exchange."""
        match frame.WhichOneof("frame"):
            case "history":
                messages = frame.history.messages
                for message in messages:
                    if message.state == MESSAGE_STATE_OPEN and message.author.role == ROLE_AGENT:
                        self._cancel(CancelFrame(message_id=message.id))
                if messages and messages[-1].author.role == ROLE_USER and messages[-1].client_id:
                    self._cancel(CancelFrame(client_id=messages[-1].client_id))
                self._answer_if_done()
            case "cancelled":
                self._waiting -= 1
                self._cancelled += [reply.message_id for reply in frame.cancelled.replies]
                self._answer_if_done()
        return b""

    def _cancel(self, cancel: CancelFrame) -> None:
        self._waiting += 1
        cancel.id = f"stop-{self._waiting}"
        self.requests.append(ClientFrame(cancel=cancel))

    def _answer_if_done(self) -> None:
        if not self._waiting:
            self.answer = HttpReply(200, {"cancelled": self._cancelled})


def _plan(request: HttpRequest, chat: str, codec: Exchange) -> ConnectPlan:
    """The plan of a connection to a chat. `user` in the query counts if the client may name any user."""
    if not 0 < len(chat) <= MAX_CHAT_CHARACTERS:
        problem = f"must have 1 to {MAX_CHAT_CHARACTERS} characters"
        raise catalogue.INVALID_ARGUMENT.refused(field="id", problem=problem)
    opened = ConnectionOpened(user=request.parameter("user"), protocol=NAME)
    opened.address.tenant = request.parameters["tenant"]
    opened.address.agent = request.parameters["agent"]
    opened.address.platform = PLATFORM
    return ConnectPlan(codec, opened, bearer(request.headers), chat=chat, large_frames=True)


def _send(request: HttpRequest) -> ConnectPlan:
    sent = read_request(request.body)
    if sent.replaces_last:
        return _plan(request, sent.chat, RegeneratedStream(sent))
    return _plan(request, sent.chat, UiMessageStream(sent.message))


def _resume(request: HttpRequest) -> ConnectPlan:
    return _plan(request, request.parameters["chat"], ResumedStream())


def _stop(request: HttpRequest) -> ConnectPlan:
    return _plan(request, request.parameters["chat"], Stop())


def _load(request: HttpRequest) -> ConnectPlan:
    return _plan(request, request.parameters["chat"], ChatPage(request.parameters["chat"]))


def _render_refusal(refused: CallRefused) -> HttpReply:
    """The sentence alone, which the SDK makes the message of its error."""
    return HttpReply(refused.http_status, str(refused), "text/plain; charset=utf-8")


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    return Dialect(
        name=NAME,
        connect=exchanges_only,
        rejection_codec=DEFAULT,
        http_prefixes=("/ai/",),
        render_refusal=_render_refusal,
        exchanges=(
            ExchangeRoute("POST", Path(BASE), _send, _render_refusal, large_body=True),
            ExchangeRoute("GET", Path(f"{BASE}/{{chat}}"), _load, _render_refusal),
            ExchangeRoute("GET", Path(f"{BASE}/{{chat}}/stream"), _resume, _render_refusal),
            ExchangeRoute("POST", Path(f"{BASE}/{{chat}}/stop"), _stop, _render_refusal),
        ),
    )
