"""maim_message's tenant family, see docs/dialects/maim.md: `/ws/{tenant}[/{agent}]/{platform}`."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from trunkline.v1 import catalogue
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import AckFrame, ClientFrame, ConnectedFrame, MessageFrame, PingFrame, ServerFrame
from trunkline.v1.message_pb2 import (
    MESSAGE_STATE_COMPLETE,
    MESSAGE_STATE_OPEN,
    MESSAGE_STATE_RECALLED,
    ROLE_USER,
    Message,
    MessageState,
)

from trunkline_edge.dialects.codec import Codec, DirectReply, FrameRefused, StreamingMode
from trunkline_edge.dialects.dialect import Clock, ConnectPlan, ConnectRequest, Dialect
from trunkline_edge.dialects.maim.http_routes import routes
from trunkline_edge.dialects.maim.messages import (
    BROADCAST,
    MESSAGE,
    RESULT,
    Fields,
    NotAnObject,
    carried,
    conversation_of,
    message_info,
    parts_of,
    public_id,
    read_object,
    seconds,
    segment_of,
    stamped,
    string_of,
    user_of,
    value_of,
    words_of,
)
from trunkline_edge.dialects.native.json_schema import enum_names
from trunkline_edge.dialects.paths import Path

_write = msgspec.json.Encoder().encode

_STATES = enum_names(MessageState.DESCRIPTOR)
_INVALID_JSON = "Invalid JSON format"
_SECRETS = ("token", "api_key")
#: What the codec itself refuses a message for. Other errors without an id answer what the edge told the
#: router on the client's behalf, and are nothing to it.
_REFUSED_HERE = frozenset({catalogue.MALFORMED_FRAME.code, catalogue.UNEXPECTED_FRAME.code})


@dataclass(frozen=True)
class Maim(Codec):
    """The codec of all sockets of one tenant, agent and platform that connected alike."""

    name = "maim"
    replies = StreamingMode.WHOLE
    #: To messages without a `message_id`.
    gives_ids = True
    tells_delivered = True
    refuses_by_http = True

    tenant: str
    agent: str
    platform: str
    #: The client's path names the agent, so it is told the agent with what it is sent.
    names_agent: bool
    clock: Clock = field(compare=False)

    def decode(self, payload: bytes, binary: bool = False) -> ClientFrame | DirectReply | None:
        """See Codec. What is no word of the protocol's own is a message, whatever its type."""
        if binary:
            raise _malformed("binary frames are not taken; send JSON as text")
        try:
            fields = read_object(payload)
        except NotAnObject as problem:
            raise _malformed(str(problem)) from None
        except ValueError:
            raise _malformed(_INVALID_JSON) from None
        match string_of(fields, "type"):
            case "ping":
                return ClientFrame(ping=PingFrame())
            case "heartbeat":
                return DirectReply(_write({"type": "heartbeat_response", "timestamp": self._now()}))
            # Who is connected has been let in; what a late `auth` holds must not get into a log.
            case "heartbeat_response" | "auth":
                return None
            case "message_result":
                return self._reported(payload, fields)
        return ClientFrame(message=MessageFrame(id=_id_of(fields), parts=parts_of(MESSAGE, payload, fields)))

    def _reported(self, payload: bytes, fields: Fields) -> ClientFrame | None:
        """What became of a pushed message: that it arrived is known already, a failure is for the agent."""
        if value_of(fields, "success") is not False:
            return None
        return ClientFrame(message=MessageFrame(parts=parts_of(RESULT, payload, fields)))

    def encode(self, frame: ServerFrame) -> bytes:
        """See Codec."""
        match frame.WhichOneof("frame"):
            case "connected":
                return self._confirmed(frame.connected)
            case "message":
                return self._pushed(frame.message)
            case "ack":
                return self._taken(frame.ack)
            case "error" if frame.error.id:
                return self._not_taken(frame.error.id, frame.error.code, frame.error.message)
            case "error" if frame.error.code in _REFUSED_HERE:
                return self._error(frame.error.code, frame.error.message)
            case "closing":
                return self._error(frame.closing.reason, frame.closing.message)
            case "pong":
                return b'{"type":"pong"}'
        return b""

    def heartbeat(self) -> bytes:
        """See Codec."""
        return _write({"type": "heartbeat", "timestamp": self._now()})

    def _confirmed(self, connected: ConnectedFrame) -> bytes:
        return _write(
            {
                "type": "connection_confirmed",
                "connection_uuid": connected.connection_id,
                **self._place(),
                # Whether what was kept for it follows; it cannot where a log began anew.
                "recovered": connected.recovered,
                "timestamp": self._now(),
            }
        )

    def _taken(self, ack: AckFrame) -> bytes:
        return _write(
            {
                "type": "message_result",
                "message_id": ack.id,
                "success": True,
                # What replies name in `reply_to`, and /result knows.
                "server_message_id": public_id(ack.message_id, self.tenant),
            }
        )

    def _not_taken(self, message_id: str, code: str, text: str) -> bytes:
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

    def _pushed(self, message: Message) -> bytes:
        """A message for the client; what it or another client said is none."""
        if message.author.role == ROLE_USER or message.state in (MESSAGE_STATE_OPEN, MESSAGE_STATE_RECALLED):
            return b""
        if (said := carried(message)) is None:
            return _write(self._reply(message))
        name, fields = said
        stamps: dict[str, Any] = {"message_id": public_id(message.id, self.tenant), **self._place()}
        if name == BROADCAST:
            stamps["broadcast_timestamp"] = seconds(message.created_at)
        if "type" not in fields:
            stamps["type"] = "message"
        return stamped(fields, stamps)

    def _reply(self, message: Message) -> dict[str, Any]:
        """What an agent or backend said in the contract's own parts, for all kinds of readers."""
        message_id = public_id(message.id, self.tenant)
        reply: dict[str, Any] = {
            "type": "chat_response",
            "message_id": message_id,
            **self._place(),
            "agent_id": self.agent,
            "message_info": message_info(message, message_id, self.platform),
            "message_segment": segment_of(message),
            "data": {
                "response": words_of(message),
                "agent_id": self.agent,
                "chat_stream_id": message.attributes.get("chat_stream_id", ""),
            },
            "timestamp": seconds(message.created_at),
        }
        if message.reply_to:
            reply["reply_to"] = public_id(message.reply_to, self.tenant)
        if message.state > MESSAGE_STATE_COMPLETE:
            # A state that is newer than this version of the contract has no name.
            reply["state"] = _STATES.get(message.state, "unknown")
        if message.HasField("error"):
            reply["error"] = message.error.message
        return reply

    def _place(self) -> dict[str, str]:
        """Where the client is connected, with which all that it is sent is stamped."""
        place = {"tenant_id": self.tenant, "platform": self.platform}
        return place | {"agent_id": self.agent} if self.names_agent else place

    def _now(self) -> float:
        return self.clock().timestamp()


def connect(clock: Clock, request: ConnectRequest) -> ConnectPlan:
    """Read a connect request. Raises Refused INVALID_ADDRESS where nobody says which agent it is for."""
    tenant, platform = request.parameters["tenant"], request.parameters["platform"]
    named = request.parameters.get("agent", "")
    agent = named or request.tenants.default_agent(tenant)
    if not agent:
        raise catalogue.INVALID_ADDRESS.refused(
            problem=f"the path names no agent, and none is set for it; set [tenants.{tenant}] agent, "
            "or connect to /ws/<tenant>/<agent>/<platform>"
        )
    codec = Maim(tenant, agent, platform, bool(named), clock)
    opened = ConnectionOpened(user=user_of(agent, platform), protocol=codec.name)
    address = opened.address
    address.tenant, address.agent, address.platform = tenant, agent, platform
    address.conversation.CopyFrom(conversation_of(platform))
    opened.resume.delivered = True
    token = request.token or _basic(request)
    wish = ConnectPlan(codec, opened, token=token, names_user=False, large_frames=True)
    if not wish.token and request.needs_token(tenant):
        wish.first = partial(_first, wish)
    return wish


def _first(wish: ConnectPlan, payload: bytes, binary: bool) -> ConnectPlan:
    """The `auth` frame of a client that has shown no token yet."""
    try:
        fields = {} if binary else read_object(payload)
    except ValueError:
        fields = {}
    if string_of(fields, "type") == "auth":
        wish.token = next((secret for name in _SECRETS if (secret := string_of(fields, name))), "")
    if not wish.token:
        raise catalogue.UNAUTHORIZED.refused(problem="a token must be given, here in a first auth frame")
    wish.first = None
    return wish


def _basic(request: ConnectRequest) -> str:
    """The password in an `Authorization: Basic` header: clients that cannot send a token send their URL's."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _id_of(fields: Fields) -> str:
    """The client's id for its message; empty where it gave none."""
    value = value_of(fields, "message_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _malformed(problem: str) -> FrameRefused:
    return FrameRefused(catalogue.MALFORMED_FRAME, problem)


def make(clock: Clock) -> Dialect:
    """The dialect."""
    return Dialect(
        name="maim",
        asks_tenants=True,
        connect=partial(connect, clock),
        refusing=Maim("", "", "", False, clock),
        sockets=(Path("/ws/{tenant}/{platform}"), Path("/ws/{tenant}/{agent}/{platform}")),
        routes=routes(),
    )
