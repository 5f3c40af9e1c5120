"""Connect requests of the native protocol, `/v1/connect`, see docs/protocol.md."""

from __future__ import annotations

import base64
import binascii
from functools import partial

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame, ResumeFrame

from trunkline_edge.dialects.codec import Codec, FrameRefused
from trunkline_edge.dialects.dialect import ConnectPlan, ConnectRequest, Dialect, FirstFrameReader
from trunkline_edge.dialects.native.json_codec import NativeJson
from trunkline_edge.dialects.native.proto_codec import NativeProto
from trunkline_edge.dialects.paths import Path

#: By WebSocket subprotocol, in order of preference.
CODECS: dict[str, Codec] = {codec.name: codec for codec in (NativeJson(), NativeProto())}

#: The codec of clients that ask for no subprotocol.
DEFAULT: Codec = CODECS[NativeJson.name]

#: `resume=frame`: the positions come in the first frame.
RESUME_BY_FRAME = "frame"
#: `resume=delivered`: resume after the messages that the user has reported as `delivered`.
RESUME_BY_DELIVERY = "delivered"

_KINDS = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
#: `auth=frame`: the token comes in the first frame.
AUTH_BY_FRAME = "frame"

_PARAMETERS = {"tenant", "agent", "platform", "conversation", "user", "resume", "rollup_ms", "token", "auth"}

MAX_ROLLUP_MS = 500


def connect(request: ConnectRequest) -> ConnectPlan:
    """Plan a connection. Raises Refused INVALID_ADDRESS for a malformed request.

    The router validates the ids.
    """
    codec = CODECS[request.subprotocol] if request.subprotocol else DEFAULT
    plan, resume = plan_of(request, codec)
    if resume == RESUME_BY_FRAME:
        plan.read_first = partial(_read_resume, plan)
    elif resume == RESUME_BY_DELIVERY:
        plan.opened.resume.delivered = True
    elif resume:
        plan.opened.resume.CopyFrom(positions_of(resume))
    auth = request.parameter("auth")
    if auth == AUTH_BY_FRAME:
        plan.read_first = partial(_read_auth, plan, plan.read_first)
    elif auth:
        raise invalid("auth: must be frame")
    return plan


def plan_of(request: ConnectRequest, codec: Codec) -> tuple[ConnectPlan, str]:
    """The plan for the query, and its unparsed `resume`. Raises Refused INVALID_ADDRESS."""
    values: dict[str, str] = {}
    for name, value in request.query:
        if name not in _PARAMETERS:
            raise invalid(f"unknown parameter {name[:64]}; known are {', '.join(sorted(_PARAMETERS))}")
        if name in values:
            raise invalid(f"{name} is given twice")
        values[name] = value
    plan = ConnectPlan(codec, opened_by(values), token=request.token)
    plan.opened.protocol = codec.name
    if "rollup_ms" in values:
        plan.rollup_ms = _rollup_ms(values["rollup_ms"])
    return plan, values.get("resume", "")


def opened_by(values: dict[str, str]) -> ConnectionOpened:
    """The address and user in these query parameters. Raises Refused INVALID_ADDRESS."""
    opened = ConnectionOpened(user=values.get("user", ""))
    address = opened.address
    address.tenant = values.get("tenant", "")
    address.agent = values.get("agent", "")
    address.platform = values.get("platform", "")
    if "conversation" in values:
        # Split once: the router rejects ids with a colon.
        kind, _, ident = values["conversation"].partition(":")
        if kind not in _KINDS:
            raise invalid("conversation: must be person:<id> or group:<id>")
        address.conversation.kind = _KINDS[kind]
        address.conversation.id = ident
    return opened


def _read_auth(plan: ConnectPlan, then: FirstFrameReader | None, payload: bytes, binary: bool) -> ConnectPlan:
    """Read the `auth` frame, which must come first; `then` reads the next frame."""
    frame = plan.codec.decode(payload, binary)
    if not isinstance(frame, ClientFrame) or not frame.HasField("auth"):
        raise catalogue.UNAUTHORIZED.refused(
            problem="the first frame after connecting with auth=frame must be an auth frame"
        )
    plan.token, plan.read_first = frame.auth.token, then
    return plan


def _read_resume(plan: ConnectPlan, payload: bytes, binary: bool) -> ConnectPlan:
    """Read the `resume` frame, which must come first."""
    frame = plan.codec.decode(payload, binary)
    if not isinstance(frame, ClientFrame) or not frame.HasField("resume"):
        kind = frame.WhichOneof("frame") if isinstance(frame, ClientFrame) else "unknown"
        problem = "the first frame after connecting with resume=frame must be a resume frame"
        raise invalid(catalogue.UNEXPECTED_FRAME.sentence(type=kind, problem=problem))
    plan.opened.resume.CopyFrom(frame.resume)
    plan.read_first = None
    return plan


def _rollup_ms(value: str) -> int:
    # Only ASCII digits: int() accepts others too.
    if not (value.isascii() and value.isdigit() and len(value) <= 3 and int(value) <= MAX_ROLLUP_MS):
        raise invalid(f"rollup_ms: must be a whole number from 0 to {MAX_ROLLUP_MS}")
    return int(value)


def positions_of(resume: str) -> ResumeFrame:
    """The positions in a URL: the JSON array of a `resume` frame in URL-safe base64.

    Raises Refused INVALID_ADDRESS.
    """
    try:
        array = base64.urlsafe_b64decode(resume + "=" * (-len(resume) % 4))
        frame = DEFAULT.decode(b'{"type":"resume","positions":' + array + b"}")
    except (binascii.Error, ValueError, FrameRefused) as error:
        raise invalid(f"resume: {error}") from None
    assert isinstance(frame, ClientFrame)
    return frame.resume


def invalid(problem: str) -> catalogue.Refused:
    """Refusal of a malformed connect request."""
    return catalogue.INVALID_ADDRESS.refused(problem=problem)


NATIVE = Dialect(
    name="native",
    connect=connect,
    rejection_codec=DEFAULT,
    websocket_paths=(Path("/v1/connect"),),
    subprotocols=tuple(CODECS),
)
