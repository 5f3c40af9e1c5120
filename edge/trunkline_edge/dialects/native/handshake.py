"""The native protocol, see docs/protocol.md: `/v1/connect`, in two encodings of one schema."""

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

#: For a client that asks for no subprotocol.
DEFAULT: Codec = CODECS[NativeJson.name]

#: In place of positions: they come in the first frame.
RESUME_BY_FRAME = "frame"
#: In place of positions: those that the user told as `delivered`.
RESUME_BY_DELIVERY = "delivered"

_KINDS = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
#: In place of a token: it comes in the first frame.
AUTH_BY_FRAME = "frame"

_PARAMETERS = {"tenant", "agent", "platform", "conversation", "user", "resume", "rollup_ms", "token", "auth"}

MAX_ROLLUP_MS = 500


def connect(request: ConnectRequest) -> ConnectPlan:
    """Read a connect request. Raises Refused INVALID_ADDRESS where it cannot be read.

    Whether the ids are valid is for the router to say.
    """
    codec = CODECS[request.subprotocol] if request.subprotocol else DEFAULT
    wish, resume = wish_of(request, codec)
    if resume == RESUME_BY_FRAME:
        wish.first = partial(_first_frame, wish)
    elif resume == RESUME_BY_DELIVERY:
        wish.opened.resume.delivered = True
    elif resume:
        wish.opened.resume.CopyFrom(positions_of(resume))
    auth = request.parameter("auth")
    if auth == AUTH_BY_FRAME:
        wish.first = partial(_auth_frame, wish, wish.first)
    elif auth:
        raise invalid("auth: must be frame")
    return wish


def wish_of(request: ConnectRequest, codec: Codec) -> tuple[ConnectPlan, str]:
    """What the query says, and its `resume`, which is still to be read. Raises Refused INVALID_ADDRESS."""
    values: dict[str, str] = {}
    for name, value in request.query:
        if name not in _PARAMETERS:
            raise invalid(f"there is no parameter {name[:64]}; there are {', '.join(sorted(_PARAMETERS))}")
        if name in values:
            raise invalid(f"{name} is given twice")
        values[name] = value
    wish = ConnectPlan(codec, opened_by(values), token=request.token)
    wish.opened.protocol = codec.name
    if "rollup_ms" in values:
        wish.rollup_ms = _rollup_ms(values["rollup_ms"])
    return wish, values.get("resume", "")


def opened_by(values: dict[str, str]) -> ConnectionOpened:
    """What parameters of these names say. Raises Refused INVALID_ADDRESS."""
    opened = ConnectionOpened(user=values.get("user", ""))
    address = opened.address
    address.tenant = values.get("tenant", "")
    address.agent = values.get("agent", "")
    address.platform = values.get("platform", "")
    if "conversation" in values:
        # Split once: the router refuses an id with a second colon, as any id with one.
        kind, _, ident = values["conversation"].partition(":")
        if kind not in _KINDS:
            raise invalid("conversation: must be person:<id> or group:<id>")
        address.conversation.kind = _KINDS[kind]
        address.conversation.id = ident
    return opened


def _auth_frame(
    wish: ConnectPlan, then: FirstFrameReader | None, payload: bytes, binary: bool
) -> ConnectPlan:
    """The `auth` frame that must come first, and what must come after it."""
    frame = wish.codec.decode(payload, binary)
    if not isinstance(frame, ClientFrame) or not frame.HasField("auth"):
        raise catalogue.UNAUTHORIZED.refused(
            problem="after connecting with auth=frame an auth frame comes first"
        )
    wish.token, wish.first = frame.auth.token, then
    return wish


def _first_frame(wish: ConnectPlan, payload: bytes, binary: bool) -> ConnectPlan:
    """The `resume` frame that must come first."""
    frame = wish.codec.decode(payload, binary)
    if not isinstance(frame, ClientFrame) or not frame.HasField("resume"):
        kind = frame.WhichOneof("frame") if isinstance(frame, ClientFrame) else "unknown"
        problem = "after connecting with resume=frame a resume frame comes first"
        raise invalid(catalogue.UNEXPECTED_FRAME.sentence(type=kind, problem=problem))
    wish.opened.resume.CopyFrom(frame.resume)
    wish.first = None
    return wish


def _rollup_ms(value: str) -> int:
    # Nothing but ASCII digits, of which int() would take more kinds.
    if not (value.isascii() and value.isdigit() and len(value) <= 3 and int(value) <= MAX_ROLLUP_MS):
        raise invalid(f"rollup_ms: must be a whole number from 0 to {MAX_ROLLUP_MS}")
    return int(value)


def positions_of(resume: str) -> ResumeFrame:
    """The positions in a URL: the JSON array of a `resume` frame, in URL-safe base64.

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
    """Why a connect request cannot be read."""
    return catalogue.INVALID_ADDRESS.refused(problem=problem)


NATIVE = Dialect(
    name="native",
    connect=connect,
    refusing=DEFAULT,
    sockets=(Path("/v1/connect"),),
    subprotocols=tuple(CODECS),
)
