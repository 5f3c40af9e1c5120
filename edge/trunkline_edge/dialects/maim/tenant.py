"""maim_message's tenant protocol, see docs/dialects/maim.md: `/ws/{tenant}[/{agent}]/{platform}`."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, ConnectedFrame, MessageFrame, PingFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    Message,
    MessageState,
)
from trunkline_runtime.enum_names import enum_names

from trunkline_edge.dialects.codec import Codec, DirectReply, FrameRefused, StreamingMode
from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.json_text import replace_lone_surrogates, top_level_string
from trunkline_edge.dialects.maim.http_routes import PREFIXES, render_refusal, routes
from trunkline_edge.dialects.maim.messages import (
    BROADCAST,
    MESSAGE,
    RESULT,
    Fields,
    NotAnObject,
    TooManyValues,
    carried,
    message_info,
    opening_of,
    parts_of,
    public_id,
    read_object,
    seconds,
    segment_of,
    stamped,
    string_of,
    text_of,
    value_of,
)
from trunkline_edge.dialects.paths import Path

_write = msgspec.json.Encoder().encode

_STATES = enum_names(MessageState.DESCRIPTOR)
_INVALID_JSON = "Invalid JSON format"
_SECRETS = ("token", "api_key")
#: Codes of errors that this codec raises. Other errors without an id answer frames that the edge sent on the
#: client's behalf, so the client does not get them.
_CODEC_ERRORS = frozenset({catalogue.MALFORMED_FRAME.code, catalogue.UNEXPECTED_FRAME.code})


@dataclass(frozen=True)
class Maim(Codec):
    """The codec of clients of one tenant, agent and platform, by the same form of path."""

    name = "maim"
    streaming = StreamingMode.COMPLETE
    #: For messages without a `message_id`.
    assigns_ids = True
    reports_delivery = True
    rejects_by_http = True

    tenant: str
    agent: str
    platform: str
    #: The client's path names the agent, so frames to it name the agent too.
    names_agent: bool
    clock: Clock = field(compare=False)

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame | DirectReply | None:
        """See Codec. Any object is a message, unless its type is one of the protocol's own."""
        if binary:
            raise _malformed("binary frames are not supported; send JSON as text")
        payload = replace_lone_surrogates(payload)
        try:
            fields = read_object(payload)
        except TooManyValues as problem:
            raise _malformed(f"the JSON {problem}", self.frame_id(payload), problem.values) from None
        except NotAnObject as problem:
            raise _malformed(str(problem)) from None
        except ValueError:
            raise _malformed(_INVALID_JSON, self.frame_id(payload)) from None
        match string_of(fields, "type"):
            case "ping":
                return ClientFrame(ping=PingFrame())
            case "heartbeat":
                return DirectReply(_write({"type": "heartbeat_response", "timestamp": self._now()}))
            # A late `auth` is dropped, because its secret must not reach a log.
            case "heartbeat_response" | "auth":
                return None
            case "message_result":
                return self._report(payload, fields)
        return ClientFrame(message=MessageFrame(id=_id_of(fields), parts=parts_of(MESSAGE, payload, fields)))

    def _report(self, payload: bytes, fields: Fields) -> ClientFrame | None:
        """A client's result of a pushed message: failures go to the agent, successes are known already."""
        if value_of(fields, "success") is not False:
            return None
        return ClientFrame(message=MessageFrame(parts=parts_of(RESULT, payload, fields)))

    def frame_id(self, payload: bytes, binary: bool = False) -> str:
        """See Codec. Finds an id that is a string."""
        return top_level_string(payload, b"message_id")

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        match frame.WhichOneof("frame"):
            case "connected":
                return self._connection_confirmed(frame.connected)
            case "message":
                return self._push(frame.message)
            case "ack":
                return self._accepted(frame.ack)
            case "error" if frame.error.id:
                return self._rejected(frame.error.id, frame.error.code, frame.error.message)
            case "error" if frame.error.code in _CODEC_ERRORS:
                return self._error(frame.error.code, frame.error.message)
            case "closing":
                return self._error(frame.closing.reason, frame.closing.message)
            case "pong":
                return b'{"type":"pong"}'
        return b""

    def heartbeat(self) -> bytes:
        """See Codec."""
        return _write({"type": "heartbeat", "timestamp": self._now()})

    def _connection_confirmed(self, connected: ConnectedFrame) -> bytes:
        return _write(
            {
                "type": "connection_confirmed",
                "connection_uuid": connected.connection_id,
                **self._place(),
                # False if a log was reset, so that the messages stored for the client are lost.
                "recovered": connected.recovered,
                "timestamp": self._now(),
            }
        )

    def _accepted(self, ack: AckFrame) -> bytes:
        return _write(
            {
                "type": "message_result",
                "message_id": ack.id,
                "success": True,
                # The id in `reply_to` of replies, and in /result.
                "server_message_id": public_id(ack.message_id, self.tenant),
            }
        )

    def _rejected(self, message_id: str, code: str, text: str) -> bytes:
        return _write(
            {
                "type": "message_result",
                "message_id": message_id,
                "success": False,
                "error_code": code,
                "error_message": text,
            }
        )

    def _error(self, code: str, text: str) -> bytes:
        if code == catalogue.MALFORMED_FRAME.code:
            code = "invalid_json" if text == _INVALID_JSON else "internal_error"
        return _write({"type": "error", "error_code": code, "error_message": text, "timestamp": self._now()})

    def _push(self, message: Message) -> bytes:
        """A message for the client; messages of clients are not pushed."""
        if message.author.role == ROLE_USER or message.state in (MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED):
            return b""
        if (original := carried(message)) is None:
            return _write(self._reply(message))
        name, fields = original
        stamps: dict[str, Any] = {"message_id": public_id(message.id, self.tenant), **self._place()}
        if name == BROADCAST:
            stamps["broadcast_timestamp"] = seconds(message.created_at)
        if "type" not in fields:
            stamps["type"] = "message"
        return stamped(fields, stamps)

    def _reply(self, message: Message) -> dict[str, Any]:
        """A message in the contract's own parts, as fields for every kind of reader."""
        message_id = public_id(message.id, self.tenant)
        reply: dict[str, Any] = {
            "type": "chat_response",
            "message_id": message_id,
            **self._place(),
            "agent_id": self.agent,
            "message_info": message_info(message, message_id, self.platform),
            "message_segment": segment_of(message),
            "data": {
                "response": text_of(message),
                "agent_id": self.agent,
                "chat_stream_id": message.attributes.get("chat_stream_id", ""),
            },
            "timestamp": seconds(message.created_at),
        }
        if message.reply_to:
            reply["reply_to"] = public_id(message.reply_to, self.tenant)
        if message.state > MESSAGE_STATE_COMPLETE:
            # A state newer than this version of the contract has no name.
            reply["state"] = _STATES.get(message.state, "unknown")
        if message.HasField("error"):
            reply["error"] = message.error.message
        return reply

    def _place(self) -> dict[str, str]:
        """The client's address, in every frame to it."""
        place = {"tenant_id": self.tenant, "platform": self.platform}
        return place | {"agent_id": self.agent} if self.names_agent else place

    def _now(self) -> float:
        return self.clock().timestamp()


def connect(clock: Clock, request: ConnectRequest) -> ConnectPlan:
    """Plan a connection. Raises Refused INVALID_ADDRESS if neither path nor tenant names an agent."""
    tenant, platform = request.parameters["tenant"], request.parameters["platform"]
    named = request.parameters.get("agent", "")
    agent = named or request.tenants.default_agent(tenant)
    if not agent:
        raise catalogue.INVALID_ADDRESS.refused(
            problem=f"the path names no agent and the tenant has no default; set [tenants.{tenant}] agent, "
            "or connect to /ws/<tenant>/<agent>/<platform>"
        )
    codec = Maim(tenant, agent, platform, bool(named), clock)
    opened = opening_of(codec.name, tenant, agent, platform)
    token = request.token or _basic(request)
    plan = ConnectPlan(codec, opened, token=token, names_user=False, may_be_foreign=True, large_frames=True)
    if not plan.token and request.needs_token(tenant):
        plan.read_first = partial(_read_auth, plan)
    return plan


def _read_auth(plan: ConnectPlan, payload: bytes, binary: bool) -> ConnectPlan:
    """Read the `auth` frame of a client that connected without a token."""
    try:
        fields = {} if binary else read_object(payload)
    except ValueError:
        fields = {}
    if string_of(fields, "type") == "auth":
        plan.token = next((secret for name in _SECRETS if (secret := string_of(fields, name))), "")
    if not plan.token:
        raise catalogue.UNAUTHORIZED.refused(
            problem="a token must be given, in the URL, a header or a first auth frame"
        )
    plan.read_first = None
    return plan


def _basic(request: ConnectRequest) -> str:
    """The password of a Basic `Authorization` header, which clients take from their URL's user info."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _id_of(fields: Fields) -> str:
    """The client's id for its message; empty for none."""
    value = value_of(fields, "message_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _malformed(problem: str, frame_id: str = "", values: int = 0) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, problem, frame_id, values)


def make(clock: Clock) -> Dialect:
    """Create the dialect."""
    return Dialect(
        name="maim",
        needs_tenants=True,
        connect=partial(connect, clock),
        rejection_codec=Maim("", "", "", False, clock),
        websocket_paths=(Path("/ws/{tenant}/{platform}"), Path("/ws/{tenant}/{agent}/{platform}")),
        routes=routes(),
        http_prefixes=PREFIXES,
        render_refusal=render_refusal,
    )
