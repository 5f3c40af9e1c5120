"""What a connect request says."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import CONVERSATION_KIND_GROUP, CONVERSATION_KIND_PERSON
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.frame_pb2 import ClientFrame

from edge.dialects.codec import Codec, FrameRefused
from edge.dialects.registry import DEFAULT

PATH = "/v1/connect"

#: In place of positions: they come in the first frame.
RESUME_BY_FRAME = "frame"

_KINDS = {"person": CONVERSATION_KIND_PERSON, "group": CONVERSATION_KIND_GROUP}
_PARAMETERS = {"tenant", "agent", "platform", "conversation", "user", "resume", "rollup_ms", "token"}

MAX_ROLLUP_MS = 500


class ConnectRequest(NamedTuple):
    """A client's wish to connect."""

    codec: Codec
    #: All that the URL says; the shell adds id, time and place.
    opened: ConnectionOpened
    #: A `resume` frame is to come first.
    resume_by_frame: bool
    #: The window in which deltas are to be joined; None for the edge's own.
    rollup_ms: int | None


def parse(target: str, codec: Codec) -> ConnectRequest:
    """Read the target of a request to PATH. Raises Refused INVALID_ADDRESS where it cannot be read.

    Whether the ids are valid is for the router to say.
    """
    try:
        pairs = parse_qsl(urlsplit(target).query, keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError as error:
        raise _invalid(f"the query cannot be read: {error}") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in _PARAMETERS:
            raise _invalid(f"there is no parameter {name[:64]}; there are {', '.join(sorted(_PARAMETERS))}")
        if name in values:
            raise _invalid(f"{name} is given twice")
        values[name] = value
    opened = ConnectionOpened(user=values.get("user", ""), protocol=codec.name)
    address = opened.address
    address.tenant = values.get("tenant", "")
    address.agent = values.get("agent", "")
    address.platform = values.get("platform", "")
    if "conversation" in values:
        # Split once: the router refuses an id with a second colon, as any id with one.
        kind, _, ident = values["conversation"].partition(":")
        if kind not in _KINDS:
            raise _invalid("conversation: must be person:<id> or group:<id>")
        address.conversation.kind = _KINDS[kind]
        address.conversation.id = ident
    resume = values.get("resume", "")
    if resume and resume != RESUME_BY_FRAME:
        opened.resume.CopyFrom(_positions(resume).resume)
    rollup_ms = _rollup_ms(values["rollup_ms"]) if "rollup_ms" in values else None
    return ConnectRequest(codec, opened, resume == RESUME_BY_FRAME, rollup_ms)


def _rollup_ms(value: str) -> int:
    # Nothing but ASCII digits, of which int() would take more kinds.
    if not (value.isascii() and value.isdigit() and len(value) <= 3 and int(value) <= MAX_ROLLUP_MS):
        raise _invalid(f"rollup_ms: must be a whole number from 0 to {MAX_ROLLUP_MS}")
    return int(value)


def _positions(resume: str) -> ClientFrame:
    """The positions in a URL: the JSON array of a `resume` frame, in URL-safe base64."""
    try:
        array = base64.urlsafe_b64decode(resume + "=" * (-len(resume) % 4))
        return DEFAULT.decode(b'{"type":"resume","positions":' + array + b"}")
    except (binascii.Error, ValueError, FrameRefused) as error:
        raise _invalid(f"resume: {error}") from None


def _invalid(problem: str) -> catalogue.Refused:
    return catalogue.INVALID_ADDRESS.refused(problem=problem)
